"""Parameters and multiply-adds, counted by running a model without memory on the meta device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..errors import EffnetFastError
from .config import VARIANTS, Stage, canonical_name, list_models, scaled_stages
from .efficientnet import create


class Count(NamedTuple):
    """Cost of a model, or of a part of it, for one image."""

    parameters: int
    multiply_adds: int


class StageSummary(NamedTuple):
    """One row of a model's stage table; sizes are heights, which equal widths."""

    name: str  # "stem", "stage1" ... "stage7", "head", "classifier"
    kernel_size: int
    expand_ratio: float
    stride: int
    repeats: int
    in_channels: int
    out_channels: int
    input_size: int
    output_size: int
    parameters: int
    multiply_adds: int


class ModelSummary(NamedTuple):
    """A model with the table of its stages."""

    name: str
    resolution: int
    dropout: float
    parameters: int
    multiply_adds: int
    stages: tuple[StageSummary, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain dictionaries and lists, ready for JSON."""
        return {**self._asdict(), "stages": [stage._asdict() for stage in self.stages]}


def parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def _layer_multiply_adds(module: nn.Module, output: torch.Tensor) -> int:
    # A convolution's weight is [out, in / groups, kh, kw], a linear layer's [out, in]: either way an output
    # element costs the product of all sizes but the first.
    assert isinstance(module.weight, torch.Tensor)
    return output.numel() * module.weight.shape[1:].numel()


def _trace(model: nn.Module, resolution: int) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-adds of each convolution and linear layer, and the height of each child of ``features``."""
    cost: dict[str, int] = {}
    heights: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):

            def add(module: nn.Module, _: object, output: torch.Tensor, name: str = name) -> None:
                cost[name] = cost.get(name, 0) + _layer_multiply_adds(module, output)

            hooks.append(module.register_forward_hook(add))
        elif name.startswith("features.") and name.count(".") == 1:

            def measure(_: nn.Module, __: object, output: torch.Tensor, name: str = name) -> None:
                heights[name] = output.shape[-2]

            hooks.append(module.register_forward_hook(measure))
    try:
        first = next(model.parameters())
        with torch.no_grad():
            model(torch.empty(1, 3, resolution, resolution, device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return cost, heights


def _meta_model(name: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return create(name, num_classes=num_classes).eval()


def _check_resolution(resolution: int) -> None:
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise EffnetFastError(f"count: resolution: expected a positive integer, got {resolution!r}")


def count(model: str | nn.Module, resolution: int | None = None, *, num_classes: int = 1000) -> Count:
    """Parameters and multiply-adds of one [3, resolution, resolution] image.

    Multiply-adds are those of convolutions and linear layers; activations, normalization (folded at
    inference), pooling and products by the gate are not counted, as is the custom.

    Args:
        model: a name, or any network of images, which is run once in evaluation mode on its own device and
            left in the mode it was in.
        resolution: ``None`` is the named model's own; a module needs one.
        num_classes: for a name.
    """
    if isinstance(model, str):
        name = canonical_name(model)
        resolution = VARIANTS[name].resolution if resolution is None else resolution
        model = _meta_model(name, num_classes)
    if resolution is None:
        raise EffnetFastError("count: resolution: expected a size for a module, got None")
    _check_resolution(resolution)
    modes = {module: module.training for module in model.modules()}
    try:
        cost, _ = _trace(model.eval(), resolution)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Count(parameters(model), sum(cost.values()))


def summarize(name: str, resolution: int | None = None, *, num_classes: int = 1000) -> ModelSummary:
    """A model's stage table at ``resolution`` (``None``: its own).

    Raises:
        UnknownModelError: a name that is not in ``list_models()``.
        EffnetFastError: a resolution that is not a positive integer.
    """
    name = canonical_name(name)
    variant = VARIANTS[name]
    resolution = variant.resolution if resolution is None else resolution
    _check_resolution(resolution)
    model = _meta_model(name, num_classes)
    cost, heights = _trace(model, resolution)

    stages = scaled_stages(variant.width_mult, variant.depth_mult)
    stem, head = stages[0].in_channels, stages[-1].out_channels
    rows = [
        ("stem", "features.0", Stage(1, 3, 2, 3, stem, 1)),
        *((f"stage{i}", f"features.{i}", stage) for i, stage in enumerate(stages, 1)),
        ("head", f"features.{len(stages) + 1}", Stage(1, 1, 1, head, 4 * head, 1)),
        ("classifier", "classifier", Stage(1, 1, 1, 4 * head, num_classes, 1)),
    ]

    summaries = []
    size = resolution
    for label, path, stage in rows:
        module = model.get_submodule(path)
        # The classifier sees one pooled pixel.
        output_size = heights.get(path, 1)
        summaries.append(
            StageSummary(
                name=label,
                kernel_size=stage.kernel_size,
                expand_ratio=stage.expand_ratio,
                stride=stage.stride,
                repeats=stage.repeats,
                in_channels=stage.in_channels,
                out_channels=stage.out_channels,
                input_size=size if path in heights else 1,
                output_size=output_size,
                parameters=parameters(module),
                multiply_adds=sum(value for key, value in cost.items() if key.startswith(f"{path}.")),
            )
        )
        size = output_size
    return ModelSummary(
        name, resolution, variant.dropout, parameters(model), sum(cost.values()), tuple(summaries)
    )


def summarize_all() -> list[ModelSummary]:
    """The table of B0 to B7, each at its own resolution."""
    return [summarize(name) for name in list_models()]
