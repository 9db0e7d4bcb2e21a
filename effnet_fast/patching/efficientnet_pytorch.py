"""``MBConvBlock`` of the packages efficientnet_pytorch and efficientnet_lite_pytorch (TensorFlow's "SAME" padding)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..nn.parts import (
    ConvBN,
    MBConvParts,
    NetworkParts,
    Padding,
    SqueezeExcite,
    about,
    activation_name,
    check_mean,
    children,
    conv_padding,
)

_STATIC = "Conv2dStaticSamePadding"
_DYNAMIC = "Conv2dDynamicSamePadding"
#: Both are x * sigmoid(x); the memory-efficient one recomputes it in its backward, as our kernels do.
_SWISH = ("Swish", "MemoryEfficientSwish")


def parts(block: nn.Module, drop_connect_rate: float | None = None) -> MBConvParts:
    """``drop_connect_rate`` is what the block's ``forward`` received."""
    args = block._block_args
    act = _activation(block._swish)
    residual = bool(block.id_skip and args.stride == 1 and args.input_filters == args.output_filters)
    depthwise = ConvBN(_conv(block._depthwise_conv), block._bn1, act)
    _check_unpadded(block._project_conv)
    squeeze_excite = None
    if block.has_se:
        squeeze_excite = SqueezeExcite(_conv(block._se_reduce), _conv(block._se_expand), act, "sigmoid")
    expand = None
    if args.expand_ratio != 1:
        _check_unpadded(block._expand_conv)
        expand = ConvBN(_conv(block._expand_conv), block._bn0, act)
    return MBConvParts(
        depthwise,
        ConvBN(_conv(block._project_conv), block._bn2),
        expand=expand,
        squeeze_excite=squeeze_excite,
        residual=residual,
        padding=_padding(depthwise.conv),
        row_scale=_drop_connect(drop_connect_rate) if drop_connect_rate and block.training else None,
    )


def network(model: nn.Module) -> NetworkParts:
    """``EfficientNet`` of either package; without its top it ends with pooled features [N, C, 1, 1]."""
    settings = model._global_params
    if getattr(settings, "local_pooling", False):
        raise UnsupportedBlockError("local pooling has no fused kernel")
    with about("_conv_stem"):
        act = _activation(model._swish)
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
        list(model._blocks),
        head,
        keep_dims=not top,
        classifier=(model._dropout, *children(model._fc)) if top else (),
    )


def _activation(module: nn.Module) -> str:
    return "silu" if type(module).__name__ in _SWISH else activation_name(module)


def _conv(module: nn.Module) -> nn.Conv2d:
    if type(module).__name__ not in (_STATIC, _DYNAMIC, "Conv2d"):
        raise UnsupportedBlockError(f"{type(module).__name__} is not a convolution of this library")
    return module  # type: ignore[return-value]


def _padding(conv: nn.Conv2d) -> Padding | str:
    if type(conv).__name__ == _DYNAMIC:
        return "same"
    static = getattr(conv, "static_padding", None)
    left, right, top, bottom = conv_padding(conv)
    if isinstance(static, nn.ZeroPad2d):
        before = static.padding
        return left + before[0], right + before[1], top + before[2], bottom + before[3]
    return left, right, top, bottom


def _check_unpadded(conv: nn.Conv2d) -> None:
    if isinstance(getattr(conv, "static_padding", None), nn.ZeroPad2d) and any(conv.static_padding.padding):
        raise UnsupportedBlockError("a 1x1 convolution is padded")


def _drop_connect(rate: float):  # type: ignore[no-untyped-def]
    keep = 1 - rate

    def draw(x: Tensor) -> Tensor:
        # The same call as the library's drop_connect, so that seeds match.
        noise = torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
        return torch.floor(keep + noise) / keep

    return draw
