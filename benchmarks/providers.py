"""Who computes a case, and the check that must pass before anyone is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Outputs
from effnet_fast.bench.providers import capture
from effnet_fast.dispatch import use_backend
from effnet_fast.tolerance import assert_accurate, error

Step = Callable[[], Outputs]

CPU = ("eager", "eager-channels-last", "compile", "compile-max-autotune", "effnet-fast-cpu")
CUDA = (
    *("eager", "eager-channels-last", "native-depthwise", "compile", "compile-max-autotune", "cuda-graph"),
    *("effnet-fast-cuda", "effnet-fast-triton", "effnet-fast-cuda-graph"),
)
#: Those that start at once.
QUICK = ("eager", "eager-channels-last", "effnet-fast-cpu", "effnet-fast-cuda", "effnet-fast-triton")

#: Backends tried for each of the package's providers; what CUDA C++ lacks in a block, Triton does.
BACKENDS = {
    "effnet-fast-cpu": ("cpu",),
    "effnet-fast-cuda": ("cuda", "triton"),
    "effnet-fast-triton": ("triton",),
    "effnet-fast-cuda-graph": ("auto",),
}


def names(device: torch.device, quick: bool) -> list[str]:
    """The providers for a device."""
    return [name for name in (CUDA if device.type == "cuda" else CPU) if not quick or name in QUICK]


def step(provider: str, case: Case) -> Step:
    """One call of ``case`` by ``provider``: outputs by name, in training with the gradients of input and parameters.

    Raises:
        BackendError: the package's kernels cannot run this case here; when the step is first called.
    """
    module = copy.deepcopy(case.module)
    layout = torch.contiguous_format if provider in ("eager", "native-depthwise") else torch.channels_last
    x = case.x.detach().clone()
    if x.dim() == 4:
        module, x = module.to(memory_format=layout), x.contiguous(memory_format=layout)
    call: Callable[[Tensor], Any] = case.ours(module) if provider in BACKENDS else module
    if call is not module and isinstance(call, nn.Module):
        module = call
    if provider.startswith("compile"):
        # All shapes run through the same code, of which the compiler keeps eight versions: the ninth would run eager.
        torch.compiler.reset()
        mode = "max-autotune-no-cudagraphs" if provider.endswith("autotune") else "default"
        call = torch.compile(call, mode=mode, dynamic=False)
    run = _training(case, call, module, x) if case.mode == "train" else _inference(case, call, x)
    if provider in BACKENDS:
        run = _on_backends(run, BACKENDS[provider])
    if provider == "native-depthwise":
        run = _without_cudnn(run)
    return capture(run) if provider.endswith("cuda-graph") else run


def _named(case: Case, value: Any) -> Outputs:
    values = value if isinstance(value, tuple) else (value,)
    return dict(zip(case.outputs, values, strict=True))


def _inference(case: Case, call: Callable[[Tensor], Any], x: Tensor) -> Step:
    def run() -> Outputs:
        with torch.no_grad():
            return _named(case, call(x))

    return run


def _training(case: Case, call: Callable[[Tensor], Any], module: nn.Module, x: Tensor) -> Step:
    x.requires_grad_()
    parameters = dict(module.named_parameters())
    gradient: Tensor | None = None

    def run() -> Outputs:
        nonlocal gradient
        outputs = _named(case, call(x))
        if gradient is None:
            generator = torch.Generator().manual_seed(1)
            noise = torch.randn(outputs["y"].shape, generator=generator)
            gradient = noise.to(outputs["y"]).contiguous(
                memory_format=torch.channels_last if _is_channels_last(x) else torch.contiguous_format
            )
        dx, *rest = torch.autograd.grad(outputs["y"], [x, *parameters.values()], gradient)
        return {"y": outputs["y"], "dx": dx, **dict(zip(parameters, rest, strict=True))}

    return run


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _on_backends(run: Step, backends: tuple[str, ...]) -> Step:
    def chosen() -> Outputs:
        with use_backend(*backends):
            return run()

    return chosen


def _without_cudnn(run: Step) -> Step:
    def native() -> Outputs:
        with torch.backends.cudnn.flags(enabled=False):
            return run()

    return native


class Truth:
    """The fp64 outputs of a case and PyTorch's own in the case's precision, to check providers against."""

    def __init__(self, case: Case) -> None:
        self.case = case
        # Images do not meet in inference: the first and the last prove indexing, and fp64 stays affordable.
        self._rows = [0, len(case.x) - 1] if case.mode == "infer" else list(range(len(case.x)))
        double = case._replace(module=copy.deepcopy(case.module).double(), x=case.x[self._rows].double())
        self.values = step("eager", double)()
        self.baseline = self._worse("eager", "eager-channels-last")

    def check(self, outputs: Outputs) -> None:
        """Raises AssertionError where the error is more than twice PyTorch's own plus a few roundings."""
        for name, value in self._chosen(outputs).items():
            truth, baseline = self.values[name], self.baseline[name]
            assert_accurate(f"{self.case.name} {name}", value, baseline, truth, self.case.x.dtype)

    def _worse(self, *providers: str) -> Outputs:
        """Of PyTorch's layouts, which add in different orders, the less exact one for each output."""
        found = [self._chosen(step(provider, self.case)()) for provider in providers]
        return {
            name: max((outputs[name] for outputs in found), key=lambda value: error(value, truth))
            for name, truth in self.values.items()
        }

    def _chosen(self, outputs: Outputs) -> Outputs:
        if self.case.mode == "train":
            return dict(outputs)
        return {name: value[self._rows] for name, value in outputs.items()}
