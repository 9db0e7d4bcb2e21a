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


def truth(model: nn.Module, x: Tensor, device: torch.device, job: Job) -> Tensor | None:
    """What fp64 gives for the first of the images ``x``: logits, or in training the stem's gradient.

    ``None`` where training has too few images for BatchNorm. The model is left in fp64.
    """
    model = model.to(device).double()
    if job.mode == "infer":
        with torch.inference_mode():
            return model(x[: IMAGES[device.type]].to(device, torch.float64)).cpu()
    few = x[:TRAINING_IMAGES]
    return _stem_gradient(model, few.to(device, torch.float64)).cpu() if len(few) > 1 else None


def max_error(
    prepared: Prepared, wanted: Tensor | None, x: Tensor, device: torch.device, job: Job
) -> float | None:
    """The error of a provider relative to :func:`truth`; ``None`` where it cannot be compared.

    Training is checked without dropout and stochastic depth, whose random numbers differ between dtypes, and only
    where the same module can run another batch: not for compiled and captured steps, which are fixed to theirs.
    """
    if wanted is None:
        return None
    if job.mode == "infer":
        assert prepared.outputs is not None
        return relative_error(prepared.outputs()[: len(wanted)], wanted)
    if prepared.module is None:
        return None
    model = copy.deepcopy(prepared.module)
    first = next(model.parameters())
    layout = torch.channels_last if _is_channels_last(model) else torch.contiguous_format
    few = x[:TRAINING_IMAGES].to(device, first.dtype, memory_format=layout)
    return relative_error(_stem_gradient(model, few), wanted)


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
