# CPU kernels: csrc/cpu/*_kernel.cpp are compiled once for each instruction set, with EFFNET_ISA naming it (and the
# namespace their code lives in); the other csrc/cpu/*.cpp once, knowing from EFFNET_HAVE_<ISA> which copies exist.
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

file(GLOB EFFNET_CPU_KERNELS CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/*_kernel.cpp")
file(GLOB EFFNET_CPU_SOURCES CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/*.cpp")
list(REMOVE_ITEM EFFNET_CPU_SOURCES ${EFFNET_CPU_KERNELS} "")

set(EFFNET_CPU_ISAS baseline)
set(EFFNET_FLAGS_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(EFFNET_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(EFFNET_FLAGS_avx512 ${EFFNET_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(EFFNET_FLAGS_avx512bf16 ${EFFNET_FLAGS_avx512} -mavx512bf16)
  foreach(isa avx2 avx512 avx512bf16)
    string(REPLACE ";" " " flags "${EFFNET_FLAGS_${isa}}")
    check_cxx_compiler_flag("${flags}" EFFNET_COMPILES_${isa})
    if(EFFNET_COMPILES_${isa})
      list(APPEND EFFNET_CPU_ISAS ${isa})
    endif()
  endforeach()
endif()

set(EFFNET_CPU_OBJECTS)
set(EFFNET_CPU_DEFINITIONS)
# AMX has no copy of its own: csrc/cpu/network_amx.cpp holds its instructions, for which an assembler that knows them is
# enough, and the avx512bf16 copy calls it. Only Linux has a way to ask for the registers.
if("avx512bf16" IN_LIST EFFNET_CPU_ISAS AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
  check_cxx_source_compiles([[int main() { asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0"); }]] EFFNET_COMPILES_amx)
  if(EFFNET_COMPILES_amx)
    list(APPEND EFFNET_CPU_DEFINITIONS EFFNET_HAVE_AMX=1)
  endif()
endif()
foreach(isa ${EFFNET_CPU_ISAS})
  string(TOUPPER ${isa} upper)
  list(APPEND EFFNET_CPU_DEFINITIONS EFFNET_HAVE_${upper}=1)
  if(EFFNET_CPU_KERNELS AND "_ops" IN_LIST EFFNET_PRODUCTS)
    add_library(effnet_cpu_${isa} OBJECT ${EFFNET_CPU_KERNELS})
    target_compile_definitions(effnet_cpu_${isa} PRIVATE EFFNET_ISA=${isa})
    if(isa STREQUAL "avx512bf16" AND EFFNET_COMPILES_amx)
      target_compile_definitions(effnet_cpu_${isa} PRIVATE EFFNET_HAVE_AMX=1)
    endif()
    target_compile_options(effnet_cpu_${isa} PRIVATE ${EFFNET_FLAGS_${isa}} ${EFFNET_WARNINGS})
    # Baseline first: of an inline function that is emitted in several copies the linker keeps the first, and only the
    # baseline one runs everywhere.
    list(APPEND EFFNET_CPU_OBJECTS $<TARGET_OBJECTS:effnet_cpu_${isa}>)
  endif()
endforeach()
