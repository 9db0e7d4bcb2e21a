// `_C`: host helpers for Python that touch no tensor. Free of torch, so it loads without it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "common/amx_cpuid.h"
#include "cuda/planner.h"

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
  features["amx_bf16"] = effnet::cpu_has_amx();
#elif defined(__aarch64__)
  features["architecture"] = "arm64";
  features["neon"] = true;  // part of every arm64
#else
  features["architecture"] = "other";
#endif
  return features;
}

using effnet::cuda::DepthwisePlan;
using effnet::cuda::DeviceLimits;
using effnet::cuda::PlannerRequest;

py::dict plan_facts(const PlannerRequest& r, const DepthwisePlan& p, const DeviceLimits& limits) {
  py::dict facts;
  facts["strips"] = p.strips;
  facts["groups"] = p.groups;
  facts["rows"] = p.rows;
  facts["images"] = p.images;
  facts["column_tiles"] = p.column_tiles;
  facts["bands"] = p.bands;
  facts["channel_blocks"] = p.channel_blocks;
  facts["image_blocks"] = p.image_blocks;
  facts["blocks"] = p.blocks();
  facts["threads"] = p.threads_per_role() * r.roles;
  facts["shared_bytes"] = r.backward ? effnet::cuda::backward_shared_bytes(r.shape, p, r.element, r.has_z)
                                     : effnet::cuda::forward_shared_bytes(r.shape, p, r.element);
  facts["predicted_us"] = effnet::cuda::predicted_time(r, p, limits);
  return facts;
}

py::list depthwise_plans(std::array<int64_t, 4> shape, int kernel, int stride, std::array<int, 4> padding, int element,
                         bool backward, int roles, bool has_z, std::array<int, 3> device, bool best) {
  PlannerRequest r{};
  r.shape.batch = static_cast<int>(shape[0]);
  r.shape.channels = static_cast<int>(shape[1]);
  r.shape.height = static_cast<int>(shape[2]);
  r.shape.width = static_cast<int>(shape[3]);
  r.shape.kernel = kernel;
  r.shape.stride = stride;
  r.shape.left = padding[0];
  r.shape.top = padding[2];
  r.shape.out_height = (r.shape.height + padding[2] + padding[3] - kernel) / stride + 1;
  r.shape.out_width = (r.shape.width + padding[0] + padding[1] - kernel) / stride + 1;
  r.element = element;
  r.backward = backward;
  r.roles = backward ? roles : 1;
  r.has_z = has_z;
  const DeviceLimits limits{device[0], device[1], device[2]};
  py::list plans;
  if (best) {
    DepthwisePlan plan{};
    if (effnet::cuda::choose_plan(r, limits, -1, &plan)) plans.append(plan_facts(r, plan, limits));
  } else {
    effnet::cuda::for_each_plan(r, limits,
                                [&](const DepthwisePlan& plan) { plans.append(plan_facts(r, plan, limits)); });
  }
  return plans;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host helpers of effnet_fast: build information and processor features.";
  m.def("build_info", &build_info, "Compiler, flags and targets of the native libraries.");
  m.def("cpu_features", &cpu_features, "Instruction sets of this processor, by name.");
  m.def("depthwise_plans", &depthwise_plans,
        "Launch plans of the CUDA depthwise kernels for x of shape [N, C, H, W]: the planner's choice (best=True), or "
        "every "
        "candidate in the order of the numbers by which an op call can force it. element: bytes; roles: gradients a "
        "backward "
        "computes; device: multiprocessors, shared memory per block and per multiprocessor (an H200's if not given).",
        py::arg("shape"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("element") = 2,
        py::arg("backward") = false, py::arg("roles") = 2, py::arg("has_z") = false,
        py::arg("device") = std::array<int, 3>{132, 227 * 1024, 228 * 1024}, py::arg("best") = false);
}
