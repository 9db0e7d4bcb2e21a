"""Runtimes beside PyTorch, each given the threads PyTorch has."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EffnetFastError
from ..inference.check import cast
from .targets import DTYPES, Job


def onnxruntime_step(model: nn.Module, x: Tensor, job: Job) -> Callable[[], Tensor]:
    """ONNX Runtime, fp32, on the model's device; exported by ``torch.onnx``."""
    import onnxruntime

    if job.dtype != "fp32":
        raise EffnetFastError("onnxruntime: fp32 only")
    wanted = "CUDAExecutionProvider" if x.is_cuda else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise EffnetFastError(f"onnxruntime: this build has no {wanted}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, _ort_value(onnxruntime, x))
    binding.bind_output(session.get_outputs()[0].name, x.device.type)

    def step() -> Any:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    def logits() -> Tensor:
        return torch.from_numpy(step().copy_outputs_to_cpu()[0])

    return logits


def _ort_value(onnxruntime: Any, x: Tensor) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(x.cpu().numpy(), x.device.type, x.device.index or 0)


def openvino_step(model: nn.Module, x: Tensor, job: Job) -> Callable[[], Tensor]:
    """OpenVINO's CPU plugin with the latency hint; fp32 or bf16."""
    import openvino

    precision = {"fp32": "f32", "bf16": "bf16"}.get(job.dtype)
    if precision is None:
        raise EffnetFastError(f"openvino: fp32 and bf16 only, not {job.dtype}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = openvino.convert_model(model, example_input=x, input=[x.shape])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = openvino.compile_model(converted, "CPU", settings).create_infer_request()
    pixels = openvino.Tensor(x.numpy(), shared_memory=True)
    request.set_input_tensor(pixels)

    # The request points into the images' memory without keeping it: whoever has the step must keep them.
    def step(images: tuple[Tensor, Any] = (x, pixels)) -> Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data)

    return step


def tensorrt_step(model: nn.Module, x: Tensor, job: Job) -> Callable[[], Tensor]:
    """TensorRT through ``torch_tensorrt``."""
    import torch_tensorrt

    dtype = DTYPES[job.dtype][0]
    cast(model, dtype)
    inputs = [x.to(dtype)]
    compiled = torch_tensorrt.compile(model, ir="dynamo", inputs=inputs, enabled_precisions={dtype})

    def step() -> Tensor:
        with torch.inference_mode():
            return compiled(*inputs)

    return step
