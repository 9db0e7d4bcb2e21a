"""Who runs a model: PyTorch in its several ways, this package, and other runtimes where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..dispatch import use_backend
from ..errors import EffnetFastError
from ..inference import optimize
from ..inference.check import cast
from ..patching import patch, report
from . import runtimes
from .targets import DTYPES, Job

Step = Callable[[], Any]

#: What this package's providers' names begin with; all others are baselines.
OURS = "effnet-fast"


class Unavailable(EffnetFastError):
    """A provider that cannot do a job here; the message says why."""


class Prepared(NamedTuple):
    """A model ready to be timed."""

    step: Step  # one measured call
    outputs: Callable[[], Tensor] | None  # logits of the batch, for the accuracy; ``None``: not comparable
    module: nn.Module | None  # the module that ran, where it can also run another batch with gradients


def is_ours(name: str) -> bool:
    return name == OURS or name.startswith(OURS + "-")


def training_step(model: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x: Tensor) -> Step:
    """Forward, cross-entropy against fixed labels, gradients of all parameters; no optimizer."""
    labels: Tensor | None = None

    def step() -> list[Tensor]:
        nonlocal labels
        logits = model(x).float()
        if labels is None:
            labels = torch.arange(len(x), dtype=torch.int64, device=x.device) % logits.shape[1]
        loss = functional.cross_entropy(logits, labels)
        return list(torch.autograd.grad(loss, parameters))

    return step


def inference_step(model: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    def step() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return step


def _torch(
    model: nn.Module,
    x: Tensor,
    job: Job,
    *,
    channels_last: bool = True,
    fused: tuple[str, ...] = (),
    compiled: str | None = None,
    frozen: bool = False,
    graph: bool = False,
) -> Prepared:
    cast(model, DTYPES[job.dtype][0])
    x = x.to(DTYPES[job.dtype][0])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    if fused:
        _patch(model, fused)
    call: Callable[[Tensor], Tensor] = model
    if compiled is not None:
        call = torch.compile(model, mode=compiled, dynamic=False)
    if frozen:
        call = _frozen(model, job)
    parameters = [p for p in model.parameters() if p.requires_grad]
    step = training_step(call, parameters, x) if job.mode == "train" else inference_step(call, x)
    if compiled is not None and x.is_cuda:
        step = _mark_steps(step)
    if fused and fused != ("auto",):
        step = _on_backends(step, fused)
    if graph:
        step = capture(step)
    plain = compiled is None and not frozen and not graph
    return Prepared(step, step if job.mode == "infer" else None, model if plain else None)


def _frozen(model: nn.Module, job: Job) -> Callable[[Tensor], Tensor]:
    if job.mode != "infer":
        raise Unavailable("inference only")
    # Weights become constants: BatchNorm is folded and the convolutions' weights are packed.
    return torch.compile(model, dynamic=False, options={"freezing": True})


def _optimized(model: nn.Module, x: Tensor, job: Job) -> Prepared:
    if job.mode != "infer":
        raise Unavailable("inference only")
    dtype = DTYPES[job.dtype][0]
    x = x.to(dtype)
    step = inference_step(optimize(model, x, dtype=dtype), x)
    return Prepared(step, step, None)


def _patch(model: nn.Module, backends: tuple[str, ...]) -> None:
    patch(model)
    with use_backend(*backends), torch.set_grad_enabled(model.training):
        rows = report(model).rows
    if not any(row.state == "fused" for row in rows):
        raise Unavailable(rows[0].reason if rows else "the model has no block that this package knows")


def _mark_steps(step: Step) -> Step:
    # Compiled code may own a CUDA graph whose outputs live until the next step begins.
    def marked() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return step()

    return marked


def _on_backends(step: Step, backends: tuple[str, ...]) -> Step:
    def chosen() -> Any:
        with use_backend(*backends):
            return step()

    return chosen


def capture(step: Step) -> Step:
    """The launches of ``step`` as one CUDA graph; returns its replay, which returns the captured outputs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


def _other(run: Callable[..., Step], package: str) -> Callable[[nn.Module, Tensor, Job], Prepared]:
    def prepare(model: nn.Module, x: Tensor, job: Job) -> Prepared:
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"{package} is not installed")
        if job.mode != "infer":
            raise Unavailable("inference only")
        step = run(model, x, job)
        return Prepared(step, step, None)

    return prepare


def _with(**options: Any) -> Callable[[nn.Module, Tensor, Job], Prepared]:
    return lambda model, x, job: _torch(model, x, job, **options)


#: name -> function of the stock model (in fp32), the images (in fp32) and the job.
PROVIDERS: dict[str, Callable[[nn.Module, Tensor, Job], Prepared]] = {
    "eager": _with(channels_last=False),
    "eager-channels-last": _with(),
    "compile": _with(compiled="default"),
    "compile-max-autotune": _with(compiled="max-autotune"),
    "inductor": _with(frozen=True, channels_last=False),
    "inductor-channels-last": _with(frozen=True),
    "cuda-graph": _with(graph=True),
    "onnxruntime": _other(runtimes.onnxruntime_step, "onnxruntime"),
    "openvino": _other(runtimes.openvino_step, "openvino"),
    "tensorrt": _other(runtimes.tensorrt_step, "torch_tensorrt"),
    OURS: _with(fused=("auto",)),
    f"{OURS}-optimize": _optimized,
    f"{OURS}-compile": _with(fused=("auto",), compiled="default"),
    f"{OURS}-cuda-graph": _with(fused=("auto",), graph=True),
    f"{OURS}-triton": _with(fused=("triton",)),
}

_CUDA_ONLY = {"cuda-graph", "tensorrt", f"{OURS}-cuda-graph", f"{OURS}-triton"}
_CPU_ONLY = {"openvino", "inductor", "inductor-channels-last", f"{OURS}-optimize"}
_SLOW_TO_START = {"compile-max-autotune", "inductor", "inductor-channels-last", f"{OURS}-compile"}

#: The package's own name stands for what it has to offer on a device.
_FAMILY = "effnet_fast"


def named(names: Sequence[str], device: str) -> list[str]:
    """Providers as the command line names them, each once; ``effnet_fast`` is the patched and the optimized model.

    Raises:
        EffnetFastError: an unknown name.
    """
    ours = [OURS] if device == "cuda" else [OURS, f"{OURS}-optimize"]
    flat = [part for name in names for part in (ours if name == _FAMILY else [name])]
    for name in flat:
        if name not in PROVIDERS:
            known = ", ".join([*PROVIDERS, _FAMILY])
            raise EffnetFastError(f"bench: unknown provider {name!r}, expected some of {known}")
    return list(dict.fromkeys(flat))


def default_providers(device: str, quick: bool) -> list[str]:
    """The providers that make sense on ``"cpu"`` or ``"cuda"`` and are installed; quick: those that start at once."""
    packages = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "torch_tensorrt"}
    names = [name for name in PROVIDERS if name not in (_CPU_ONLY if device == "cuda" else _CUDA_ONLY)]
    names = [n for n in names if n not in packages or importlib.util.find_spec(packages[n]) is not None]
    if quick:
        # ONNX Runtime's usual build has no CUDA: a whole process to say so.
        slow = {"compile", *_SLOW_TO_START, *(["onnxruntime"] if device == "cuda" else [])}
        names = [n for n in names if n not in slow]
    return names
