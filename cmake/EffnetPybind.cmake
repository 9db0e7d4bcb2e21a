# The pybind11 module of host helpers; pybind11_DIR and Python_EXECUTABLE come from effnet_fast/build/driver.py.
set(PYBIND11_FINDPYTHON ON)
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
find_package(pybind11 CONFIG REQUIRED)

pybind11_add_module(_C MODULE csrc/bindings.cpp)
string(STRIP "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_RELEASE}" flags)
set(isas ${EFFNET_CPU_ISAS})
if(EFFNET_COMPILES_amx)
  list(APPEND isas amx)
endif()
string(REPLACE ";" " " isas "${isas}")
target_compile_definitions(
  _C
  PRIVATE EFFNET_VERSION="${EFFNET_VERSION}"
          EFFNET_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
          EFFNET_FLAGS="${flags}"
          EFFNET_TORCH_TARGET="${EFFNET_TORCH_TARGET}"
          EFFNET_CPU_ISAS="${isas}")
target_compile_options(_C PRIVATE ${EFFNET_WARNINGS})
install(TARGETS _C LIBRARY DESTINATION . COMPONENT _C)
