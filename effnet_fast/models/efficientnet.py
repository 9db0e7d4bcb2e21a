"""The EfficientNet network and its builders.

State dicts, parameter order, initialization from a seed, dropout and stochastic depth are those of
``torchvision.models.efficientnet_b*``; torchvision itself is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypedDict

import torch
import torch.fx
from torch import Tensor, nn
from typing_extensions import Unpack

from ..errors import EffnetFastError
from ..nn.mbconv import ConvNormAct, MBConv, NormLayer, check_probability
from ..patching import patch
from .config import VARIANTS, Stage, canonical_name, scaled_stages
from .weights import Weights, load_weights, read_weights, resolve_weights, trained_classes

DEFAULT_CLASSES = 1000


def check_images(x: Tensor, channels: int | None) -> None:
    """Raises EffnetFastError unless ``x`` is a floating point batch [N, channels, H, W].

    Dtype and device are left to the first convolution, whose own messages are clear: sharded, offloaded and
    mixed-precision parameters change both on the way there.
    """
    if x.dim() != 4:
        raise EffnetFastError(f"EfficientNet: x: expected [N, C, H, W], got shape {list(x.shape)}")
    if channels is not None and x.shape[1] != channels:
        raise EffnetFastError(f"EfficientNet: x: expected {channels} channels, got shape {list(x.shape)}")
    if not x.is_floating_point():
        raise EffnetFastError(f"EfficientNet: x: expected floating point, normalized images, got {x.dtype}")


# The checks look at values that torch.fx does not know while it traces.
torch.fx.wrap("check_images")


class EfficientNet(nn.Module):
    """Stem, stages of MBConv, head and classifier.

    Args:
        stages: the MBConv stages in order; see :func:`effnet_fast.models.config.scaled_stages`.
        dropout: probability before the classifier.
        stochastic_depth_prob: probability of the last block; it grows linearly from 0 at the first.
        num_classes: outputs of the classifier.
        norm_layer: called with the number of channels; ``None`` is ``nn.BatchNorm2d``.

    Shape: images [N, 3, H, W] -> logits [N, num_classes].

    Raises:
        EffnetFastError: an argument out of its range; in ``forward``, ``x`` not a floating point batch.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        dropout: float = 0.2,
        stochastic_depth_prob: float = 0.2,
        num_classes: int = DEFAULT_CLASSES,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        if not stages:
            raise EffnetFastError("EfficientNet: stages must not be empty")
        if not isinstance(num_classes, int) or num_classes < 1:
            raise EffnetFastError(
                f"EfficientNet: num_classes: expected a positive integer, got {num_classes!r}"
            )
        check_probability("EfficientNet", "dropout", dropout)
        check_probability("EfficientNet", "stochastic_depth_prob", stochastic_depth_prob)
        norm = norm_layer or nn.BatchNorm2d
        last = stages[-1].out_channels
        head = 4 * last

        layers: list[nn.Module] = [ConvNormAct(3, stages[0].in_channels, 3, stride=2, norm_layer=norm)]
        layers += _build_stages(stages, stochastic_depth_prob, norm)
        layers.append(ConvNormAct(last, head, 1, norm_layer=norm))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(p=dropout, inplace=True), nn.Linear(head, num_classes))
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
            self._check(x)
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))

    def _check(self, x: Tensor) -> None:
        first = next(iter(self.features[0].children()), None)
        # A user may have put a convolution for other images there, or something else altogether.
        check_images(x, first.in_channels if isinstance(first, nn.Conv2d) else None)


def _build_stages(stages: Sequence[Stage], last_prob: float, norm_layer: NormLayer) -> list[nn.Module]:
    total = sum(stage.repeats for stage in stages)
    modules: list[nn.Module] = []
    index = 0
    for stage in stages:
        blocks = []
        for repeat in range(stage.repeats):
            in_channels = stage.out_channels if repeat else stage.in_channels
            blocks.append(
                MBConv(
                    in_channels,
                    stage.out_channels,
                    expand_ratio=stage.expand_ratio,
                    kernel_size=stage.kernel_size,
                    stride=1 if repeat else stage.stride,
                    squeeze_channels=max(1, in_channels // 4),
                    stochastic_depth_prob=last_prob * index / total,
                    norm_layer=norm_layer,
                )
            )
            index += 1
        modules.append(nn.Sequential(*blocks))
    return modules


def _initialize(model: nn.Module) -> None:
    """He initialization by fan-out for convolutions, uniform within 1/sqrt(num_classes) for the classifier.

    The order of the random draws is part of the contract: the same seed gives torchvision's weights.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


def _batch_norm(eps: float, momentum: float) -> NormLayer:
    return lambda channels: nn.BatchNorm2d(channels, eps=eps, momentum=momentum)


def efficientnet(
    *,
    width_mult: float = 1.0,
    depth_mult: float = 1.0,
    weights: Weights = None,
    progress: bool = True,
    num_classes: int | None = None,
    dropout: float = 0.2,
    stochastic_depth_prob: float = 0.2,
    norm_layer: NormLayer | None = None,
    recompute_expand: bool = False,
    model_name: str | None = None,
) -> EfficientNet:
    """Any member of the family: B0 with its channels and repeats scaled; its blocks run fused where they can.

    Args:
        width_mult: multiplies channels, which are rounded to multiples of 8.
        depth_mult: multiplies repeats, which are rounded up.
        weights: what to load: ``None``, a torchvision weights enum member or its name, a path to a ``.pth``,
            ``.pt`` or ``.safetensors`` file, or a state dict.
        progress: show a progress bar while an enum's weights are downloaded.
        num_classes: outputs of the classifier; ``None`` is what the enum was trained for, else 1000.
        dropout: probability before the classifier.
        stochastic_depth_prob: probability of the last block; it grows linearly from 0 at the first.
        norm_layer: called with the number of channels; ``None`` is ``nn.BatchNorm2d``.
        recompute_expand: train in less memory for some more arithmetic; see :func:`effnet_fast.patch`.
        model_name: ``"b0"`` to ``"b7"``, for which short enum names such as ``"DEFAULT"`` are looked up.

    Raises:
        EffnetFastError: an argument out of its range.
        CheckpointError: weights that cannot be read or do not fit; the message says how.
    """
    stages = scaled_stages(width_mult, depth_mult)
    weights = resolve_weights(weights, model_name)
    if num_classes is None:
        num_classes = trained_classes(weights) or DEFAULT_CLASSES
    # Read first: a wrong path should not cost the construction of a large model.
    state = None if weights is None else read_weights(weights, progress=progress)
    model = EfficientNet(
        stages,
        dropout=dropout,
        stochastic_depth_prob=stochastic_depth_prob,
        num_classes=num_classes,
        norm_layer=norm_layer,
    )
    return patch(
        model if state is None else load_weights(model, state), recompute_expand=recompute_expand or None
    )


class Builder(Protocol):
    """What :func:`b0` to :func:`b7` take; a variant's own dropout is its default."""

    def __call__(
        self,
        *,
        weights: Weights = None,
        progress: bool = True,
        num_classes: int | None = None,
        dropout: float = ...,
        stochastic_depth_prob: float = 0.2,
        norm_layer: NormLayer | None = None,
        recompute_expand: bool = False,
    ) -> EfficientNet: ...


class BuilderOptions(TypedDict, total=False):
    """The same arguments, for :func:`create`."""

    weights: Weights
    progress: bool
    num_classes: int | None
    dropout: float
    stochastic_depth_prob: float
    norm_layer: NormLayer | None
    recompute_expand: bool


def _builder(name: str) -> Builder:
    variant = VARIANTS[name]

    def build(
        *,
        weights: Weights = None,
        progress: bool = True,
        num_classes: int | None = None,
        dropout: float = variant.dropout,
        stochastic_depth_prob: float = 0.2,
        norm_layer: NormLayer | None = None,
        recompute_expand: bool = False,
    ) -> EfficientNet:
        return efficientnet(
            width_mult=variant.width_mult,
            depth_mult=variant.depth_mult,
            weights=weights,
            progress=progress,
            num_classes=num_classes,
            dropout=dropout,
            stochastic_depth_prob=stochastic_depth_prob,
            norm_layer=norm_layer or _batch_norm(variant.bn_eps, variant.bn_momentum),
            recompute_expand=recompute_expand,
            model_name=name,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f"EfficientNet-{name.upper()}, made for {variant.resolution}x{variant.resolution} images.\n\n"
        "Arguments and errors are those of :func:`efficientnet`; width, depth, dropout and BatchNorm\n"
        "settings are the variant's."
    )
    return build


_BUILDERS = {name: _builder(name) for name in VARIANTS}
b0, b1, b2, b3, b4, b5, b6, b7 = _BUILDERS.values()


def create(name: str, **kwargs: Unpack[BuilderOptions]) -> EfficientNet:
    """``create("b3", ...)`` is ``b3(...)``; ``"efficientnet_b3"`` works too.

    Raises:
        UnknownModelError: a name that is not in ``list_models()``; the message names those.
        TypeError: an argument that the builders do not have.
    """
    return _BUILDERS[canonical_name(name)](**kwargs)
