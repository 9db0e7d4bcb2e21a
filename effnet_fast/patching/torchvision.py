"""torchvision's ``MBConv``, and our own, which has the same structure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..nn.exact import name_of
from ..nn.parts import (
    ConvBN,
    MBConvParts,
    NetworkParts,
    SqueezeExcite,
    about,
    activation_name,
    check_mean,
    check_plain_convs,
    check_rate,
    children,
    conv_padding,
)

_LAYERS = ("torchvision.ops.misc.Conv2dNormActivation", "effnet_fast.nn.mbconv.ConvNormAct")
_SQUEEZE_EXCITES = ("torchvision.ops.misc.SqueezeExcitation", "effnet_fast.nn.mbconv.SqueezeExcitation")
_STOCHASTIC_DEPTHS = (
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "effnet_fast.nn.mbconv.StochasticDepth",
)


def parts(block: nn.Module) -> MBConvParts:
    """``block.block`` = [expand] depthwise [squeeze-and-excitation] project, then stochastic depth."""
    if type(block.block) is not nn.Sequential:
        raise UnsupportedBlockError(f"its layers are in a {type(block.block).__name__}, not in nn.Sequential")
    layers = list(children(block.block))
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
        residual=bool(block.use_res_connect),
        padding=conv_padding(depthwise.conv),
        row_scale=_row_scale(block.stochastic_depth) if block.use_res_connect else None,
    )


def network(model: nn.Module) -> NetworkParts:
    """``features`` = stem, stages of blocks, head; the head may have been cut off."""
    first, *layers = enumerate(children(model.features))
    with about("features.0"):
        stem = conv_bn(first[1])
    head = None
    if layers and name_of(layers[-1][1]) in _LAYERS:
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
    if name_of(layer) not in _LAYERS:
        raise UnsupportedBlockError(f"{type(layer).__name__} is not convolution, normalization, activation")
    row = [child for child in layer._modules.values() if child is not None]
    if not 2 <= len(row) <= 3:
        raise UnsupportedBlockError(f"{type(layer).__name__} is not convolution, normalization, activation")
    if type(row[0]) is not nn.Conv2d:
        raise UnsupportedBlockError(f"{type(row[0]).__name__} is not nn.Conv2d")
    return ConvBN(row[0], row[1], activation_name(row[2]) if len(row) == 3 else "none")  # type: ignore[arg-type]


def _is_squeeze_excite(layer: nn.Module) -> bool:
    return name_of(layer) in _SQUEEZE_EXCITES


def _squeeze_excite(layer: nn.Module) -> SqueezeExcite:
    check_mean(layer.avgpool)
    check_plain_convs(layer.fc1, layer.fc2)
    return SqueezeExcite(
        layer.fc1, layer.fc2, activation_name(layer.activation), activation_name(layer.scale_activation)
    )


def _row_scale(stochastic_depth: nn.Module):  # type: ignore[no-untyped-def]
    known = name_of(stochastic_depth) in _STOCHASTIC_DEPTHS
    if not known or getattr(stochastic_depth, "mode", "row") != "row":
        raise UnsupportedBlockError(f"{type(stochastic_depth).__name__} is not stochastic depth by row")
    check_rate(stochastic_depth.p)
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
