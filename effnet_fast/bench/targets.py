"""What is measured: models by name, one measurement's settings, and the model they ask for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import models
from ..errors import EffnetFastError
from ..models.config import VARIANTS
from ..patching import unpatch

#: name -> dtype of weights and activations, and whether matrix products may use TF32. BatchNorm stays in fp32.
DTYPES = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
MODES = ("infer", "train")
SEED = 20190528


class Job(NamedTuple):
    """One measurement, whoever makes it."""

    model: str
    mode: str  # infer: forward without autograd; train: forward, loss, gradients of all parameters
    batch: int
    resolution: int
    dtype: str


def parse(name: str) -> tuple[Callable[[], nn.Module], int | None, str | None]:
    """What a model's name stands for.

    Args:
        name: ``b0`` to ``b7``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``, a callable
            without arguments.

    Returns:
        A builder of the stock model, its own resolution if known, and which of B0 to B7 it is, if one.

    Raises:
        EffnetFastError: an unknown model or a missing package.
    """
    source, colon, attribute = name.partition(":")
    if not colon:
        short = models.config.canonical_name(name)
        return lambda: unpatch(models.create(short)), VARIANTS[short].resolution, short
    if not attribute:
        raise EffnetFastError(f"bench: expected a name after the colon, got {name!r}")
    family = attribute.split(".")[0].rpartition("efficientnet_")[2]
    member = family if family in VARIANTS and source in ("torchvision", "timm") else None
    resolution = VARIANTS[member].resolution if member else 224
    if source == "torchvision":
        library = _import("torchvision.models", "pip install torchvision")
        return _checked(name, lambda: library.get_model(attribute, weights=None)), resolution, member
    if source == "timm":
        library = _import("timm", "pip install timm")
        return _checked(name, lambda: library.create_model(attribute)), resolution, member
    factory = getattr(_import(source, "check the module path"), attribute, None)
    if not callable(factory):
        raise EffnetFastError(f"bench: {source} has no callable {attribute!r}")
    return _checked(name, factory), None, None


def _import(module: str, fix: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EffnetFastError(f"bench: cannot import {module}: {error} ({fix})") from error


def _checked(name: str, factory: Callable[[], Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        try:
            model = factory()
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise EffnetFastError(f"bench: {name} cannot be built: {error}") from error
        if not isinstance(model, nn.Module):
            raise EffnetFastError(f"bench: {name} gave a {type(model).__name__}, expected a torch.nn.Module")
        return unpatch(model)

    return build


def stock_model(job: Job, device: torch.device, state: dict[str, Tensor] | None = None) -> nn.Module:
    """The model of a job in fp32, the same weights every time, in the job's mode.

    The BatchNorm statistics are those of random images: with fresh ones a deep network's activations would shrink
    or grow from block to block, and a relative error would say nothing.

    Args:
        state: the state dict of the same model made before; ``None``: make one.
    """
    torch.manual_seed(SEED)
    build, _, member = parse(job.model)
    model = build().to(device)
    if state is not None:
        model.load_state_dict(state)
        return model.train(job.mode == "train")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    # At the job's own size: with statistics of smaller images the logits of B7 reach 1e5 at 600 pixels. Large enough that
    # the last stage has statistics; other people's networks may take one size only.
    size = max(96, job.resolution) if member else job.resolution
    count = 8 if size < 256 else 2
    with torch.no_grad():
        model.train()(torch.randn(count, 3, size, size, dtype=torch.float32, device=device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.train(job.mode == "train")


def images(job: Job, device: torch.device) -> Tensor:
    """The job's batch, random, fp32, the same every time."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    shape = (job.batch, 3, job.resolution, job.resolution)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)
