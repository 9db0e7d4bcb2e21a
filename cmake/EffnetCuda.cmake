# CUDA kernels: every csrc/cuda/*.cu (free of torch) plus the csrc/cuda/*.cpp that register them.
#
# nvcc is called directly instead of through enable_language(CUDA): CMake's checks of the CUDA compiler fail with the
# toolkit from PyPI (no libcudart.so), and CMake 3.25 refuses C++20 for nvcc 13.
set(EFFNET_CUDA_ARCHS "75;80;90;100;120" CACHE STRING "Compute capabilities; the newest also gets PTX")
set(EFFNET_NVCC "" CACHE FILEPATH "The CUDA compiler")
set(EFFNET_CUDA_INCLUDE "" CACHE STRING "Folders with cuda_runtime_api.h, for the C++ compiler; nvcc knows them")
set(EFFNET_CUDART "" CACHE FILEPATH "libcudart.so.<major>, by full name: the toolkit from PyPI has no libcudart.so")

# Machine code for every architecture, and PTX for the newest, which later GPUs compile when they load it.
set(nvcc_flags -std=c++20 -O3 -DNDEBUG -lineinfo --expt-relaxed-constexpr --threads 1 -ccbin ${CMAKE_CXX_COMPILER}
               -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra)
list(SORT EFFNET_CUDA_ARCHS COMPARE NATURAL)
foreach(arch ${EFFNET_CUDA_ARCHS})
  list(APPEND nvcc_flags -gencode arch=compute_${arch},code=sm_${arch})
  set(newest ${arch})
endforeach()
list(APPEND nvcc_flags -gencode arch=compute_${newest},code=compute_${newest})
# A seventh of the size (98 MB -> 14 MB for five architectures) for a second of build time; nvcc 12.8 and later know it.
execute_process(COMMAND ${EFFNET_NVCC} --help OUTPUT_VARIABLE nvcc_help ERROR_QUIET)
if(nvcc_help MATCHES "--compress-mode")
  list(APPEND nvcc_flags --compress-mode=size)
endif()
if(EFFNET_WERROR)
  list(APPEND nvcc_flags -Werror=all-warnings -Xcompiler=-Werror)
endif()

file(GLOB EFFNET_CUDA_KERNELS CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cu")
file(GLOB EFFNET_CUDA_SOURCES CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cpp")
foreach(source ${EFFNET_CUDA_KERNELS})
  get_filename_component(stem ${source} NAME_WE)
  set(object "${CMAKE_CURRENT_BINARY_DIR}/${stem}.cu.o")
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${EFFNET_NVCC} ${nvcc_flags} -MD -MF ${object}.d -MT ${object} -c ${source} -o ${object}
    DEPENDS ${source}
    DEPFILE ${object}.d
    COMMENT "nvcc ${stem}.cu"
    VERBATIM)
  list(APPEND EFFNET_CUDA_SOURCES ${object})
endforeach()

effnet_torch_library(_cuda ${EFFNET_CUDA_SOURCES})
# USE_CUDA opens the CUDA part of torch's stable headers.
target_compile_definitions(_cuda PRIVATE USE_CUDA)
target_include_directories(_cuda SYSTEM PRIVATE ${EFFNET_CUDA_INCLUDE})
target_link_libraries(_cuda PRIVATE torch_cuda ${EFFNET_CUDART})
