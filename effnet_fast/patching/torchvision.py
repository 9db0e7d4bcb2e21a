"""torchvision's ``MBConv``, our own, which has the same structure, and the blocks of its MobileNets and MNASNet."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..nn.exact import library_class, name_of
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


#: Class -> where it keeps its layers, and whether it adds its input.
_BLOCKS = {
    "effnet_fast.nn.mbconv.MBConv": ("block", "use_res_connect"),
    "torchvision.models.efficientnet.MBConv": ("block", "use_res_connect"),
    "torchvision.models.mobilenetv2.InvertedResidual": ("conv", "use_res_connect"),
    "torchvision.models.mobilenetv3.InvertedResidual": ("block", "use_res_connect"),
    "torchvision.models.mnasnet._InvertedResidual": ("layers", "apply_residual"),
}
_WITH_STOCHASTIC_DEPTH = ("torchvision.models.efficientnet.MBConv", "effnet_fast.nn.mbconv.MBConv")


def parts(block: nn.Module) -> MBConvParts:
    """[expand] depthwise [squeeze-and-excitation] project, then stochastic depth where the class has it."""
    place, adds_input = _BLOCKS[name_of(block)]
    layers, residual = getattr(block, place), bool(getattr(block, adds_input))
    if type(layers) is not nn.Sequential:
        raise UnsupportedBlockError(f"its layers are in a {type(layers).__name__}, not in nn.Sequential")
    found = mbconv(in_rows(children(layers)), residual)
    if residual and name_of(block) in _WITH_STOCHASTIC_DEPTH:
        found = found._replace(row_scale=_row_scale(block.stochastic_depth))
    return found


def mbconv(rows: list[ConvBN | SqueezeExcite], residual: bool) -> MBConvParts:
    """The block that these layers are, in the order they run."""
    convs = [row for row in rows if isinstance(row, ConvBN)]
    excites = [row for row in rows if isinstance(row, SqueezeExcite)]
    if not 2 <= len(convs) <= 3 or rows != [*convs[:-1], *excites[:1], convs[-1]]:
        raise UnsupportedBlockError(
            f"its {len(rows)} layers are not expand, depthwise, squeeze-and-excite, project"
        )
    *expand, depthwise, project = convs
    return MBConvParts(
        depthwise,
        project,
        expand=expand[0] if expand else None,
        squeeze_excite=excites[0] if excites else None,
        residual=residual,
        padding=conv_padding(depthwise.conv),
    )


def in_rows(layers: Iterable[nn.Module]) -> list[ConvBN | SqueezeExcite]:
    """Modules as they run -> convolutions with what follows each, which may stand in a ``Conv2dNormActivation``."""
    found: list[ConvBN | SqueezeExcite] = []
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if name_of(layer) in _LAYERS:
            found.append(conv_bn(layer))
        elif name_of(layer) in _SQUEEZE_EXCITES:
            found.append(_squeeze_excite(layer))
        else:
            row = [layer]
            while rest and len(row) < 3 and not _begins(rest[0]):
                row.append(rest.pop(0))
            found.append(_in_a_row(row, type(layer).__name__))
    return found


def _begins(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d or name_of(layer) in (*_LAYERS, *_SQUEEZE_EXCITES)


def network(model: nn.Module) -> NetworkParts:
    """``features`` = stem, blocks or stages of blocks, head; the head may have been cut off."""
    if name_of(model) == "torchvision.models.mnasnet.MNASNet":
        return _mnasnet(model)
    first, *layers = enumerate(children(model.features))
    with about("features.0"):
        stem = conv_bn(first[1])
    head = None
    if layers and name_of(layers[-1][1]) in _LAYERS:
        index, last = layers.pop()
        with about(f"features.{index}"):
            head = conv_bn(last)
    if name_of(model) != "torchvision.models.mobilenetv2.MobileNetV2":
        with about("avgpool"):
            check_mean(model.avgpool)
    return NetworkParts(
        stem,
        conv_padding(stem.conv),
        [block for _, stage in layers for block in children(stage)],
        head,
        classifier=children(model.classifier),
    )


def _mnasnet(model: nn.Module) -> NetworkParts:
    """``layers`` = stem, separable convolution, stages of blocks, head: all but the stages without modules of their own."""
    layers = list(children(model.layers))
    stages = [layer for layer in layers if type(layer) is nn.Sequential]
    at = layers.index(stages[0]) if stages else len(layers)
    with about("layers"):
        if layers[at : at + len(stages)] != stages:
            raise UnsupportedBlockError("its stages do not follow each other")
        stem, *separable = in_rows(layers[:at])
        head = in_rows(layers[at + len(stages) :])
        if len(head) > 1 or not all(isinstance(row, ConvBN) for row in (stem, *head)):
            raise UnsupportedBlockError("they are not stem, separable convolution, stages and head")
        first = [mbconv(separable, False)] if separable else []
    return NetworkParts(
        stem,
        conv_padding(stem.conv),
        [*first, *(block for stage in stages for block in children(stage))],
        head[0] if head else None,
        classifier=children(model.classifier),
    )


def conv_bn(layer: nn.Module) -> ConvBN:
    """A ``Conv2dNormActivation``: convolution, normalization and, perhaps, activation in a row."""
    kind = library_class(type(layer)).__name__
    if name_of(layer) not in _LAYERS:
        raise UnsupportedBlockError(f"{kind} is not convolution, normalization, activation")
    return _in_a_row([child for child in layer._modules.values() if child is not None], kind)


def _in_a_row(row: list[nn.Module], kind: str) -> ConvBN:
    if not 2 <= len(row) <= 3:
        raise UnsupportedBlockError(f"{kind} is not convolution, normalization, activation")
    if type(row[0]) is not nn.Conv2d:
        raise UnsupportedBlockError(f"{type(row[0]).__name__} is not nn.Conv2d")
    return ConvBN(row[0], row[1], activation_name(row[2]) if len(row) == 3 else "none")  # type: ignore[arg-type]


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
