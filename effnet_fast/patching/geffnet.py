"""geffnet's ``InvertedResidual``, ``DepthwiseSeparableConv`` and ``ConvBnAct``: timm's blocks of 2020."""

from __future__ import annotations

import sys

from torch import nn

from ..errors import UnsupportedBlockError
from ..nn.exact import name_of
from ..nn.parts import (
    ConvBN,
    ConvLayerParts,
    MBConvParts,
    NetworkParts,
    Padding,
    SqueezeExcite,
    about,
    activation_name,
    check_mean,
    check_plain_convs,
    check_rate,
    children,
    conv_padding,
    layer_outside,
)
from .efficientnet_pytorch import drop_connect

_CONV, _SAME = "torch.nn.modules.conv.Conv2d", "geffnet.conv2d_layers.Conv2dSame"
_LAYER = "geffnet.efficientnet_builder.ConvBnAct"

#: Gates are functions of a module of the library.
_ACTIVATIONS = "geffnet.activations.activations"
_GATES = {"sigmoid": "sigmoid", "hard_sigmoid": "hardsigmoid"}


def parts(block: nn.Module) -> MBConvParts | ConvLayerParts:
    """The first class has ``conv_pw`` (expand) and ``conv_pwl`` (project), the second projects by ``conv_pw``."""
    if name_of(block) == _LAYER:
        return _layer(block)
    expands = name_of(block) == "geffnet.efficientnet_builder.InvertedResidual"
    if expands:
        depthwise = _conv_bn(block.conv_dw, block.bn2, block.act2)
        project = ConvBN(_conv(block.conv_pwl), block.bn3)
    else:
        depthwise = _conv_bn(block.conv_dw, block.bn1, block.act1)
        project = _conv_bn(block.conv_pw, block.bn2, block.act2)
    rate = block.drop_connect_rate
    check_rate(rate)
    return MBConvParts(
        depthwise,
        project,
        expand=_conv_bn(block.conv_pw, block.bn1, block.act1) if expands else None,
        squeeze_excite=_squeeze_excite(block.se),
        residual=bool(block.has_residual),
        padding=_padding(depthwise.conv),
        row_scale=drop_connect(rate) if block.has_residual and rate > 0 and block.training else None,
    )


def network(model: nn.Module) -> NetworkParts:
    """``GenEfficientNet``, and ``MobileNetV3``, which convolves once more after the pooling."""
    with about("conv_stem"):
        stem = _conv_bn(model.conv_stem, model.bn1, model.act1)
    blocks = [block for stage in children(model.blocks) for block in children(stage)]
    pooled = name_of(model) == "geffnet.mobilenetv3.MobileNetV3"
    head, end = None, children(model.classifier)
    if pooled:
        end = (model.conv_head, model.act2, nn.Flatten(1), *end)
        if blocks and name_of(blocks[-1]) == _LAYER:
            with about("the last of its blocks"):
                head = _layer(blocks.pop()).layer
    else:
        with about("conv_head"):
            head = _conv_bn(model.conv_head, model.bn2, model.act2)
    with about("global_pool"):
        check_mean(model.global_pool)
    return NetworkParts(stem, _padding(stem.conv), blocks, head, keep_dims=pooled, classifier=end)


def _layer(layer: nn.Module) -> ConvLayerParts:
    return layer_outside(_conv_bn(layer.conv, layer.bn1, layer.act1), _padding(layer.conv))


def _conv_bn(conv: nn.Module, bn: nn.Module, act: nn.Module) -> ConvBN:
    return ConvBN(_conv(conv), bn, activation_name(act))  # type: ignore[arg-type]


def _conv(conv: nn.Module) -> nn.Conv2d:
    if name_of(conv) not in (_CONV, _SAME):
        raise UnsupportedBlockError(f"{type(conv).__name__} is not nn.Conv2d")
    return conv  # type: ignore[return-value]


def _padding(conv: nn.Conv2d) -> Padding | str:
    return "same" if name_of(conv) == _SAME else conv_padding(conv)


def _squeeze_excite(se: nn.Module) -> SqueezeExcite | None:
    if type(se) is nn.Identity:
        return None
    if name_of(se) != "geffnet.efficientnet_builder.SqueezeExcite":
        raise UnsupportedBlockError(f"{type(se).__name__} is not geffnet's SqueezeExcite")
    check_plain_convs(se.conv_reduce, se.conv_expand)
    library = sys.modules.get(_ACTIVATIONS)
    gate = next((gate for name, gate in _GATES.items() if se.gate_fn is getattr(library, name, None)), None)
    if gate is None:
        raise UnsupportedBlockError(f"gate {se.gate_fn} has no fused kernel")
    return SqueezeExcite(se.conv_reduce, se.conv_expand, activation_name(se.act1), gate)
