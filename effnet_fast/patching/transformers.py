"""``EfficientNetBlock`` and MobileNetV2's ``MobileNetV2InvertedResidual`` of Hugging Face transformers."""

from __future__ import annotations

from torch import nn

from ..errors import UnsupportedBlockError
from ..nn.exact import name_of
from ..nn.parts import (
    ConvBN,
    ConvLayerParts,
    MBConvParts,
    Padding,
    SqueezeExcite,
    activation_name,
    check_mean,
    check_plain_convs,
    conv_padding,
    layer_outside,
)

_EFFICIENTNET = "transformers.models.efficientnet.modeling_efficientnet.EfficientNet"
_MOBILENET = "transformers.models.mobilenet_v2.modeling_mobilenet_v2.MobileNetV2"


def parts(block: nn.Module) -> MBConvParts | ConvLayerParts:
    """A block, or MobileNetV2's layer of convolution, normalization and activation."""
    if name_of(block) == f"{_EFFICIENTNET}Block":
        return _efficientnet(block)
    if name_of(block) == f"{_MOBILENET}ConvLayer":
        return _layer(block)
    return _mobilenet(block)


def _efficientnet(block: nn.Module) -> MBConvParts:
    expand = None
    if block.expand_ratio != 1:
        first = _of(f"{_EFFICIENTNET}ExpansionLayer", block.expansion)
        expand = ConvBN(_plain(first.expand_conv), first.expand_bn, activation_name(first.expand_act))
    middle = _of(f"{_EFFICIENTNET}DepthwiseLayer", block.depthwise_conv)
    conv = _of(f"{_EFFICIENTNET}DepthwiseConv2d", middle.depthwise_conv)
    last = _of(f"{_EFFICIENTNET}FinalBlockLayer", block.projection)
    dropout = last.dropout
    if last.apply_dropout and dropout.training and dropout.p != 0:
        raise UnsupportedBlockError(
            "dropout of single values before the residual connection has no fused kernel"
        )
    if type(dropout) is not nn.Dropout:
        raise UnsupportedBlockError(f"{type(dropout).__name__} is not nn.Dropout")
    return MBConvParts(
        ConvBN(conv, middle.depthwise_norm, activation_name(middle.depthwise_act)),  # type: ignore[arg-type]
        ConvBN(_plain(last.project_conv), last.project_bn),
        expand=expand,
        squeeze_excite=_squeeze_excite(block.squeeze_excite),
        residual=bool(last.apply_dropout),
        padding=_padding(conv, middle.depthwise_conv_pad if middle.stride == 2 else None),
    )


def _padding(conv: nn.Module, before: nn.Module | None) -> Padding | str:
    """By the convolution, and by a module before it."""
    if conv.padding == "same":
        if before is not None or tuple(conv.stride) != (1, 1):
            raise UnsupportedBlockError("a convolution with stride or padded before pads by 'same' besides")
        return "same"
    left, right, top, bottom = (0, 0, 0, 0) if conv.padding == "valid" else conv_padding(conv)
    if before is None:
        return left, right, top, bottom
    if type(before) is not nn.ZeroPad2d or before.value != 0 or type(before.padding) is not tuple:
        raise UnsupportedBlockError(f"{before} before the depthwise convolution is not nn.ZeroPad2d")
    if min(before.padding) < 0:
        raise UnsupportedBlockError("a convolution's padding is negative")
    a, b, c, d = before.padding
    return left + a, right + b, top + c, bottom + d


def _squeeze_excite(se: nn.Module) -> SqueezeExcite:
    _of(f"{_EFFICIENTNET}SqueezeExciteLayer", se)
    check_mean(se.squeeze)
    check_plain_convs(se.reduce, se.expand)
    return SqueezeExcite(se.reduce, se.expand, activation_name(se.act_reduce), activation_name(se.act_expand))


def _mobilenet(block: nn.Module) -> MBConvParts:
    (expand, around), (depthwise, padding), (project, around_too) = (
        _conv_bn(layer) for layer in (block.expand_1x1, block.conv_3x3, block.reduce_1x1)
    )
    if "same" in (around, around_too):
        raise UnsupportedBlockError("a 1x1 convolution is padded")
    kernel = depthwise.conv.kernel_size
    if padding == "same" and (len(kernel) != 2 or kernel[0] != kernel[1]):
        raise UnsupportedBlockError(f"it pads for a kernel of {kernel}")
    return MBConvParts(
        depthwise,
        project,
        expand=expand,
        residual=bool(block.use_residual),
        padding=padding,
        padded_kernel=kernel[0] if padding == "same" else 0,
    )


def _layer(layer: nn.Module) -> ConvLayerParts:
    return layer_outside(*_conv_bn(layer))


def _conv_bn(layer: nn.Module) -> tuple[ConvBN, Padding | str]:
    """And how it is padded: a 1x1 convolution with stride 1 never is, as TensorFlow pads."""
    _of(f"{_MOBILENET}ConvLayer", layer)
    conv = _plain(layer.convolution)
    act = "none" if layer.activation is None else activation_name(layer.activation)
    padding: Padding | str = conv_padding(conv)
    if layer.config.tf_padding and (tuple(conv.stride) != (1, 1) or tuple(conv.kernel_size) != (1, 1)):
        if any(padding):
            raise UnsupportedBlockError(f"a convolution with SAME padding pads by {conv.padding} besides")
        padding = "same"
    return ConvBN(conv, layer.normalization, act), padding


def _of(name: str, module: nn.Module) -> nn.Module:
    if name_of(module) != name:
        raise UnsupportedBlockError(f"{type(module).__name__} is not {name.rpartition('.')[2]}")
    return module


def _plain(conv: nn.Module) -> nn.Conv2d:
    if type(conv) is not nn.Conv2d:
        raise UnsupportedBlockError(f"{type(conv).__name__} is not nn.Conv2d")
    return conv
