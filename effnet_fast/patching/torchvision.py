"""torchvision's ``MBConv``, and our own, which has the same structure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..nn.parts import (
    ConvBN,
    MBConvParts,
    NetworkParts,
    SqueezeExcite,
    about,
    activation_name,
    check_mean,
    children,
    conv_padding,
)


def parts(block: nn.Module) -> MBConvParts:
    """``block.block`` = [expand] depthwise [squeeze-and-excitation] project, then stochastic depth."""
    layers = list(block.block)
    if not 2 <= len(layers) <= 4:
        raise UnsupportedBlockError(f"it has {len(layers)} layers where 2 to 4 are known")
    project = conv_bn(layers.pop())
    squeeze_excite = _squeeze_excite(layers.pop()) if _is_squeeze_excite(layers[-1]) else None
    if not 1 <= len(layers) <= 2:
        raise UnsupportedBlockError(
            f"its {len(block.block)} layers are not expand, depthwise, squeeze-and-excite, project"
        )
    depthwise = conv_bn(layers.pop())
    return MBConvParts(
        depthwise,
        project,
        expand=conv_bn(layers.pop()) if layers else None,
        squeeze_excite=squeeze_excite,
        residual=block.use_res_connect,
        padding=conv_padding(depthwise.conv),
        row_scale=_row_scale(block.stochastic_depth) if block.use_res_connect else None,
    )


def network(model: nn.Module) -> NetworkParts:
    """``features`` = stem, stages of blocks, head; the head may have been cut off."""
    first, *layers = enumerate(children(model.features))
    with about("features.0"):
        stem = conv_bn(first[1])
    head = None
    if layers and isinstance(next(iter(layers[-1][1].children()), None), nn.Conv2d):
        index, last = layers.pop()
        with about(f"features.{index}"):
            head = conv_bn(last)
    with about("avgpool"):
        check_mean(model.avgpool)
    return NetworkParts(
        stem,
        conv_padding(stem.conv),
        [block for _, stage in layers for block in children(stage)],
        head,
        classifier=children(model.classifier),
    )


def conv_bn(layer: nn.Module) -> ConvBN:
    """A ``Conv2dNormActivation``: convolution, normalization and, perhaps, activation in a row."""
    children = list(layer) if isinstance(layer, nn.Sequential) else []
    if not 2 <= len(children) <= 3:
        raise UnsupportedBlockError(f"{type(layer).__name__} is not convolution, normalization, activation")
    if type(children[0]) is not nn.Conv2d:
        raise UnsupportedBlockError(f"{type(children[0]).__name__} is not nn.Conv2d")
    return ConvBN(children[0], children[1], activation_name(children[2]) if len(children) == 3 else "none")


def _is_squeeze_excite(layer: nn.Module) -> bool:
    return type(layer).__name__ == "SqueezeExcitation"


def _squeeze_excite(layer: nn.Module) -> SqueezeExcite:
    if type(layer.fc1) is not nn.Conv2d or type(layer.fc2) is not nn.Conv2d:
        raise UnsupportedBlockError("squeeze-and-excitation's layers are not nn.Conv2d")
    return SqueezeExcite(
        layer.fc1, layer.fc2, activation_name(layer.activation), activation_name(layer.scale_activation)
    )


def _row_scale(stochastic_depth: nn.Module):  # type: ignore[no-untyped-def]
    if (
        type(stochastic_depth).__name__ != "StochasticDepth"
        or getattr(stochastic_depth, "mode", "row") != "row"
    ):
        raise UnsupportedBlockError(f"{type(stochastic_depth).__name__} is not stochastic depth by row")
    if not stochastic_depth.training or stochastic_depth.p == 0.0:
        return None
    survival = 1.0 - stochastic_depth.p

    def draw(x: Tensor) -> Tensor:
        # The same calls as torchvision.ops.stochastic_depth, so that seeds match.
        noise = torch.empty([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
        noise = noise.bernoulli_(survival)
        if survival > 0.0:
            noise.div_(survival)
        return noise

    return draw
