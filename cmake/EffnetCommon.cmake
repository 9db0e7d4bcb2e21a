# What all products share.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
# The installed file must not remember the build machine's folders.
set(CMAKE_SKIP_RPATH ON)

# The oldest torch whose stable ABI is used (2.11). One binary then serves every later version.
set(EFFNET_TORCH_TARGET 0x020b000000000000)

# Error messages carry __FILE__: as a path inside the project, the same on every build machine.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=>)

set(EFFNET_WARNINGS -Wall -Wextra)
if(EFFNET_WERROR)
  list(APPEND EFFNET_WARNINGS -Werror)
endif()

# A shared library for torch.ops.load_library on torch's stable ABI. It needs libtorch_cpu by its plain name, which the
# running torch has loaded already.
function(effnet_torch_library name)
  add_library(${name} MODULE ${ARGN})
  set_target_properties(${name} PROPERTIES PREFIX "" SUFFIX ".so")
  target_include_directories(${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
  target_include_directories(${name} SYSTEM PRIVATE ${EFFNET_TORCH_INCLUDE})
  target_compile_definitions(${name} PRIVATE TORCH_TARGET_VERSION=${EFFNET_TORCH_TARGET})
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${EFFNET_WARNINGS}>)
  target_link_directories(${name} PRIVATE ${EFFNET_TORCH_LIB})
  target_link_libraries(${name} PRIVATE torch_cpu)
  if(NOT APPLE)
    # A kernel that is declared and not compiled must fail here, not at the user's import.
    target_link_options(${name} PRIVATE -Wl,-z,defs)
  endif()
  install(TARGETS ${name} LIBRARY DESTINATION . COMPONENT ${name})
endfunction()
