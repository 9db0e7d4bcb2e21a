"""``MBConvBlock`` of efficientnet_pytorch and its relatives efficientnet_lite_pytorch and segmentation_models_pytorch.

They pad as TensorFlow does ("SAME").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..nn.exact import name_of
from ..nn.parts import (
    ConvBN,
    MBConvParts,
    NetworkParts,
    Padding,
    RowScale,
    SqueezeExcite,
    about,
    activation_name,
    check_mean,
    check_rate,
    children,
    conv_padding,
)

#: Which flags its ``forward`` reads instead of the block's arguments.
_SEGMENTATION = "segmentation_models_pytorch.encoders._efficientnet"
_LAYERS = (
    *(f"{name}.utils" for name in ("efficientnet_pytorch", "efficientnet_lite_pytorch")),
    _SEGMENTATION,
)
_STATIC = tuple(f"{layers}.Conv2dStaticSamePadding" for layers in _LAYERS)
_DYNAMIC = tuple(f"{layers}.Conv2dDynamicSamePadding" for layers in _LAYERS)

#: The lite package's own.
_NOTHING = ("torch.nn.modules.linear.Identity", *(f"{layers}.Identity" for layers in _LAYERS))


def parts(block: nn.Module, drop_connect_rate: float | None = None) -> MBConvParts:
    """``drop_connect_rate`` is what the block's ``forward`` received."""
    if drop_connect_rate is not None:
        check_rate(drop_connect_rate)
    expands, excites, residual = _facts(block)
    act = activation_name(block._swish)
    depthwise = ConvBN(_conv(block._depthwise_conv), block._bn1, act)
    _check_unpadded(block._project_conv)
    squeeze_excite = None
    if excites:
        for conv in (block._se_reduce, block._se_expand):
            _check_unpadded(conv)
        squeeze_excite = SqueezeExcite(_conv(block._se_reduce), _conv(block._se_expand), act, "sigmoid")
    expand = None
    if expands:
        _check_unpadded(block._expand_conv)
        expand = ConvBN(_conv(block._expand_conv), block._bn0, act)
    return MBConvParts(
        depthwise,
        ConvBN(_conv(block._project_conv), block._bn2),
        expand=expand,
        squeeze_excite=squeeze_excite,
        residual=residual,
        padding=_padding(depthwise.conv),
        row_scale=drop_connect(drop_connect_rate) if drop_connect_rate and block.training else None,
    )


def _facts(block: nn.Module) -> tuple[bool, bool, bool]:
    """Whether it expands, squeezes and excites, and adds its input."""
    if name_of(block) == f"{_SEGMENTATION}.MBConvBlock":
        return bool(block._has_expansion), bool(block._has_se), bool(block._has_drop_connect)
    args = block._block_args
    if not isinstance(args, tuple):
        raise UnsupportedBlockError(f"its arguments are a {type(args).__name__}, not the library's tuple")
    residual = bool(block.id_skip and args.stride == 1 and args.input_filters == args.output_filters)
    return bool(args.expand_ratio != 1), bool(block.has_se), residual


def network(model: nn.Module) -> NetworkParts:
    """``EfficientNet`` of either package; without its top it ends with pooled features [N, C, 1, 1]."""
    settings = model._global_params
    if getattr(settings, "local_pooling", False):
        raise UnsupportedBlockError("local pooling has no fused kernel")
    with about("_conv_stem"):
        act = activation_name(model._swish)
        stem = ConvBN(_conv(model._conv_stem), model._bn0, act)
    with about("_conv_head"):
        _check_unpadded(model._conv_head)
        head = ConvBN(_conv(model._conv_head), model._bn1, act)
    with about("_avg_pooling"):
        check_mean(model._avg_pooling)
    top = getattr(settings, "include_top", True)
    return NetworkParts(
        stem,
        _padding(stem.conv),
        list(children(model._blocks)),
        head,
        keep_dims=not top,
        classifier=(model._dropout, *children(model._fc)) if top else (),
    )


def _conv(module: nn.Module) -> nn.Conv2d:
    if name_of(module) not in (*_STATIC, *_DYNAMIC, "torch.nn.modules.conv.Conv2d"):
        raise UnsupportedBlockError(f"{type(module).__name__} is not a convolution of this library")
    _static_padding(module)
    return module  # type: ignore[return-value]


def _static_padding(conv: nn.Module) -> tuple[int, ...]:
    """What a convolution pads before it convolves, by a module of its own."""
    if name_of(conv) not in _STATIC or name_of(conv.static_padding) in _NOTHING:
        return 0, 0, 0, 0
    pad = conv.static_padding
    if type(pad) is not nn.ZeroPad2d or pad.value != 0 or type(pad.padding) is not tuple:
        raise UnsupportedBlockError(f"static_padding {pad} is not nn.ZeroPad2d")
    return pad.padding


def _padding(conv: nn.Conv2d) -> Padding | str:
    sides = conv_padding(conv)
    if name_of(conv) in _DYNAMIC:
        if any(sides):
            raise UnsupportedBlockError(f"a convolution with SAME padding pads by {conv.padding} besides")
        return "same"
    left, right, top, bottom = (a + b for a, b in zip(sides, _static_padding(conv), strict=True))
    if min(left, right, top, bottom) < 0:
        raise UnsupportedBlockError("a convolution's padding is negative")
    return left, right, top, bottom


def _check_unpadded(conv: nn.Module) -> None:
    if any(_static_padding(conv)):
        raise UnsupportedBlockError("a 1x1 convolution is padded")


def drop_connect(rate: float) -> RowScale:
    """The library's ``drop_connect``; geffnet has the same."""
    keep = 1 - rate

    def draw(x: Tensor) -> Tensor:
        # The same call as the libraries', so that seeds match.
        noise = torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
        return torch.floor(keep + noise) / keep

    return draw
