// `_C`: host helpers for Python that touch no tensor. Free of torch, so it loads without it.
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

// What the compiler was told, for bug reports. The macros come from CMakeLists.txt.
py::dict build_info() {
  py::dict info;
  info["version"] = EFFNET_VERSION;
  info["compiler"] = EFFNET_COMPILER;
  info["flags"] = EFFNET_FLAGS;
  info["cpp_standard"] = static_cast<long>(__cplusplus);
  info["torch_target"] = EFFNET_TORCH_TARGET;
  info["cpu_kernels"] = EFFNET_CPU_ISAS;
  return info;
}

// What the processor and the operating system offer at run time (not what this file was compiled for).
py::dict cpu_features() {
  py::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features["architecture"] = "x86_64";
  features["avx2"] = __builtin_cpu_supports("avx2") != 0;
  features["fma"] = __builtin_cpu_supports("fma") != 0;
  features["f16c"] = __builtin_cpu_supports("f16c") != 0;
  features["avx512f"] = __builtin_cpu_supports("avx512f") != 0;
  features["avx512bw"] = __builtin_cpu_supports("avx512bw") != 0;
  features["avx512dq"] = __builtin_cpu_supports("avx512dq") != 0;
  features["avx512vl"] = __builtin_cpu_supports("avx512vl") != 0;
  features["avx512_bf16"] = __builtin_cpu_supports("avx512bf16") != 0;
#elif defined(__aarch64__)
  features["architecture"] = "arm64";
  features["neon"] = true;  // part of every arm64
#else
  features["architecture"] = "other";
#endif
  return features;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host helpers of effnet_fast: build information and processor features.";
  m.def("build_info", &build_info, "Compiler, flags and targets of the native libraries.");
  m.def("cpu_features", &cpu_features, "Instruction sets of this processor, by name.");
}
