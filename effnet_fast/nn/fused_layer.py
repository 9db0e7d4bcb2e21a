"""Running a convolution layer outside the blocks (stem, head) through its fused op; :mod:`.fused` does blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedBlockError
from ..ops.conv_bn_act import run_conv_bn_act
from ..ops.conv_bn_act_kernels import Layer
from ..ops.declare import constant_result
from ..types import accumulation_dtype
from . import fused
from .parts import ConvLayerParts, batch_statistics
from .small_images import check_worth
from .tensors import of_layer


def needs_backward(parts: ConvLayerParts, x: Tensor) -> bool:
    """Whether the training kernels are needed: for a gradient, or for the batch's statistics."""
    conv, bn, _ = parts.layer
    if batch_statistics(bn):
        return True
    parameters = (conv.weight, bn.weight, bn.bias)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *parameters))


def plan(parts: ConvLayerParts, device: torch.device, dtype: torch.dtype, training: bool) -> str:
    """The backends that would run the layer.

    Raises:
        UnsupportedBlockError: the layer is better left to PyTorch; the message is the reason.
    """
    conv, bn, _ = parts.layer
    names, reason = _backends_of(
        device, dtype, training, batch_statistics(bn), _layer(parts).is_pointwise(conv.weight)
    )
    if reason:
        raise UnsupportedBlockError(reason)
    return names


@constant_result
def _backends_of(
    device: torch.device, dtype: torch.dtype, training: bool, statistics: bool, pointwise: bool
) -> tuple[str, str]:
    wanted: list[tuple[str, dict[str, object]]] = []
    if pointwise:
        wanted.append(("pointwise", {"stats": statistics}))
    elif statistics:
        wanted.append(("channel_stats", {}))
    if training or not pointwise:
        wanted.append(("affine_residual", {}))
    if training:
        wanted += [("batch_norm_reduce", {}), ("batch_norm_act_grad", {})]
        wanted += [("pointwise_backward", {})] if pointwise else []
    return fused.choices_of(wanted, device, dtype)


def _layer(parts: ConvLayerParts) -> Layer:
    conv = parts.layer.conv
    return Layer(conv.stride, conv.padding, parts.layer.act)  # type: ignore[arg-type]


def run(parts: ConvLayerParts, x: Tensor) -> Tensor:
    """The layer's forward through the fused op, running statistics included.

    Raises:
        UnsupportedBlockError: this call is better left to the layer's own modules; nothing was changed.
    """
    conv, bn, _ = parts.layer
    flat = of_layer(parts)
    weight, dtype = conv.weight, fused.compute_dtype(x)
    if x.dim() != 4 or x.shape[1] != weight.shape[1] or x.device != weight.device:
        raise UnsupportedBlockError("the input is not an image of the convolution's channels and device")
    if dtype != weight.dtype and not fused.autocasts(x):
        raise UnsupportedBlockError("input and weight differ in dtype")
    training, batch = needs_backward(parts, x), batch_statistics(bn)
    if training:
        check_worth(x, parts)
    plan(parts, x.device, dtype, training)
    layer = _layer(parts)
    out = [
        (size + 2 * pad - kernel) // stride + 1
        for size, pad, kernel, stride in zip(
            x.shape[2:], layer.padding, weight.shape[2:], layer.stride, strict=True
        )
    ]
    count = x.shape[0] * out[0] * out[1]
    if x.numel() == 0 or min(out) < 1 or (batch and count <= 1):
        raise UnsupportedBlockError("an empty batch, or one value per channel")
    norm = fused.norm_of(bn, accumulation_dtype(dtype)) if training else fused.running_norm_of(bn, flat[1:])
    recompute = parts.recompute_expand and _widens(parts)
    return run_conv_bn_act(
        x.to(dtype), weight.to(dtype), norm, layer, recompute, not training, (fused.running_of(bn),)
    ).y


def _widens(parts: ConvLayerParts) -> bool:
    """Whether the output is larger than the input, so that keeping the input alone saves memory."""
    conv = parts.layer.conv
    return conv.weight.shape[0] > conv.weight.shape[1] * conv.stride[0] * conv.stride[1]
