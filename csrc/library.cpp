// Schemas of the raw entry points. Python declares the public ops (with autograd and fake kernels) and calls these from
// their implementations, so the namespace is private: signatures here may change between versions.
//
// This file belongs to the `_ops` library: kernels of other libraries register against schemas that are loaded first.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(effnet_fast_native, m) {
  m.def("batch_norm_fold(Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps) -> Tensor");
  m.def("squeeze_excite(Tensor pooled, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, int act, int gate_act) -> Tensor");
  // `plan` is the number of a plan of the CUDA kernels; -1, all that the CPU takes, leaves the choice to the planner.
  // With `mean` and `var` (CUDA) scale and shift are a BatchNorm's weight and bias. CUDA's mean over the image may come
  // in parts, [N, P, C], and its squeeze_excite takes them so.
  m.def(
      "depthwise_forward(Tensor x, Tensor weight, int stride, int[] padding, Tensor? in_scale, Tensor? in_shift, "
      "int in_act, Tensor? scale, Tensor? shift, int act, bool pool, bool stats, int plan, Tensor? mean=None, "
      "Tensor? var=None, float eps=0.0) -> (Tensor, Tensor, Tensor)");
  // `incoming` and `source` are records (csrc/common/records.h), here and in pointwise_backward.
  m.def(
      "depthwise_backward(Tensor?[] incoming, int act, Tensor?[] source, int in_act, Tensor weight, int stride, "
      "int[] padding, Tensor? residual_grad, bool need_dx, bool need_dw, int plan=-1, bool merge=True) "
      "-> (Tensor, Tensor, Tensor)");
  // CUDA's `dgate` and `pooled` may come in parts, [N, P, C]. `dpooled` is divided by `area`.
  m.def(
      "squeeze_excite_backward(Tensor dgate, Tensor pooled, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, int act, "
      "int gate_act, int area=1) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // act(scale * x + shift) * multiplier + residual, with the mean over the image; y is empty unless written.
  m.def(
      "elementwise(Tensor x, Tensor? scale, Tensor? shift, int act, Tensor? multiplier, Tensor? residual, bool pool, "
      "bool write) -> (Tensor, Tensor)");
  m.def(
      "elementwise_(Tensor(a!) x, Tensor? scale, Tensor? shift, int act, Tensor? multiplier, Tensor? residual, "
      "bool pool) -> Tensor");
  // The CPU's passes over a tensor in training; what they compute is in csrc/cpu/passes.
  m.def("channel_stats(Tensor z) -> Tensor");
  m.def(
      "batch_norm_reduce(Tensor dy, Tensor z, Tensor mean, Tensor invstd, Tensor? row_scale, Tensor? scale, "
      "Tensor? shift, int act) -> Tensor");
  m.def(
      "batch_norm_input_grad(Tensor dy, Tensor z, Tensor a, Tensor b, Tensor c, Tensor mean, Tensor? row_scale, "
      "Tensor? scale, Tensor? shift, int act) -> Tensor");
  m.def(
      "gate_and_norm_sums(Tensor g, Tensor x, Tensor scale, Tensor shift, int act, Tensor mean, Tensor invstd, "
      "Tensor? gate, bool write) -> (Tensor, Tensor)");
  // BatchNorm's formulas on vectors (csrc/cpu/passes/batch_norm.h); the second returns the parameters' gradients and
  // rows b, c.
  m.def("batch_norm_finalize(Tensor stats, Tensor? weight, Tensor? bias, float eps) -> Tensor");
  m.def("batch_norm_backward_finalize(Tensor sums, int count, Tensor stats, bool training) -> (Tensor, Tensor)");
  m.def("gate_batch_norm_sums(Tensor sums, Tensor? gate, Tensor? pool_grad) -> Tensor");
  // The 1x1 convolution between the forming of its operand and what is made of its result (csrc/cpu/pointwise), fp32.
  m.def(
      "pointwise_forward(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, int act, Tensor? gate, bool stats) "
      "-> (Tensor, Tensor)");
  m.def(
      "pointwise_backward(Tensor?[] incoming, Tensor?[] source, int in_act, Tensor weight, Tensor? residual_grad, "
      "bool need_dx, bool need_dw) -> (Tensor, Tensor, Tensor)");
  // A network of folded convolutions into a program and its packed weights (csrc/cpu/ops/compile.cpp says what the
  // description is), in float32 or, if `half`, bfloat16.
  m.def("network_compile(Tensor[] weights, Tensor[] biases, int[] description, bool half) -> (Tensor, Tensor)");
  // A compiled network (csrc/cpu/engine/program.h): bytes of workspace, number of steps and shape of `out` for one
  // input shape; and the network itself. `times` receives the clock, in ns, before the first step and after each, with
  // the kind of step in the highest byte.
  m.def("network_plan(Tensor program, int batch, int height, int width) -> int[]");
  m.def(
      "network_run(Tensor x, Tensor program, Tensor weights, Tensor(a!) workspace, Tensor(b!) out, "
      "Tensor(c!)? times) -> ()");
  // Asks the system for pages of 2 MB in memory that was not touched yet, where it has them; a hint.
  m.def("prefer_huge_pages(Tensor(a!) memory) -> ()");
  // One block from weights as the model has them; `*_fold` are what batch_norm_fold makes, `acts` those of expand,
  // depthwise, squeeze-and-excite and its gate. Dropout of whole rows is not in it.
  m.def(
      "mbconv_inference(Tensor x, Tensor? expand, Tensor? expand_fold, Tensor depthwise, Tensor depthwise_fold, "
      "Tensor project, Tensor project_fold, Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, int stride, int[] padding, "
      "int[] acts, bool residual) -> Tensor");
  // The same on CUDA, in two halves (csrc/cuda/block.h): everything that follows from the shapes, once; and the
  // launches. `weights` are the tensors of a block in their order (the second op takes those that are there), `expand`
  // and `project` kernels that Triton compiled. The second returns an empty tensor where the tensors are not what was
  // prepared for.
  m.def(
      "mbconv_prepare(Tensor x, Tensor?[] weights, float[] eps, int stride, int[] padding, int[] acts, int[] expand, "
      "int[] project) -> Tensor");
  m.def("mbconv_run(Tensor x, Tensor[] weights, Tensor prepared) -> Tensor");
  // Recorded launches on CUDA (csrc/cuda/replay.cpp). What the kernels write is not in the schema: nobody who would
  // have to know sees these calls.
  m.def("replay_prepare(Tensor x, int tensors, int[] words) -> Tensor");
  m.def("replay_launch(Tensor[] tensors, Tensor prepared) -> ()");
  m.def("replay_facts(Tensor[] tensors) -> Tensor");
  m.def("replay_same(Tensor[] tensors, Tensor facts) -> bool");
  // Forces an instruction set of the CPU kernels (their numbers: csrc/cpu/isa/isa.h; negative asks)
  // and returns the one in use.
  m.def("cpu_isa(int requested) -> int");
}
