"""How far a provider's numbers are from the same model in fp64, run by PyTorch as it is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .providers import Prepared, training_step
from .targets import Job

#: Images compared: enough to notice a wrong kernel, few enough for fp64 on a CPU.
IMAGES = {"cpu": 1, "cuda": 2}

#: Images of the training check, whose BatchNorm needs a batch.
TRAINING_IMAGES = 4


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Largest deviation over the largest value of the truth; infinite if anything is not finite."""
    actual, truth = actual.detach().double().cpu(), truth.detach().double().cpu()
    if actual.shape != truth.shape or not bool(actual.isfinite().all()):
        return float("inf")
    return ((actual - truth).abs().max() / truth.abs().max().clamp_min(1e-300)).item()


def max_error(
    prepared: Prepared, truth: nn.Module, x: Tensor, device: torch.device, job: Job
) -> float | None:
    """The relative error of the logits (inference) or of the stem's gradient (training).

    Training is checked without dropout and stochastic depth, whose random numbers differ between dtypes, and only
    where the same module can run another batch: not for compiled and captured steps, which are fixed to theirs.
    """
    truth = truth.double()
    if job.mode == "infer":
        assert prepared.outputs is not None
        count = min(IMAGES[device.type], len(x))
        with torch.inference_mode():
            wanted = truth(x[:count].to(device, torch.float64))
        return relative_error(prepared.outputs()[:count], wanted)
    if prepared.module is None:
        return None
    few = x[:TRAINING_IMAGES].to(device)
    if len(few) < 2:
        return None
    model = copy.deepcopy(prepared.module)
    first = next(model.parameters())
    layout = torch.channels_last if _is_channels_last(model) else torch.contiguous_format
    got = _stem_gradient(model, few.to(first.dtype, memory_format=layout))
    return relative_error(got, _stem_gradient(truth, few.double()))


def _is_channels_last(model: nn.Module) -> bool:
    return any(
        p.dim() == 4 and p.shape[1] > 1 and p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
        if p.dim() == 4 and p.shape[2] > 1
    )


def _stem_gradient(model: nn.Module, x: Tensor) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ in ("StochasticDepth", "DropPath"):
            module.p = module.drop_prob = 0.0  # type: ignore[assignment]
    return training_step(model, [next(model.parameters())], x)()[0]
