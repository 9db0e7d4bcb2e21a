"""The depthwise convolution and its backward: one native pass each."""

from __future__ import annotations

from torch import Tensor

from ...records import DepthwiseIncoming, Source, conv_grad
from ...types import Affine, ConvGrad, ConvOut, Padding, RunningNorm
from .entry_points import NUMBER, kernels, scale_and_shift


def depthwise(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    in_affine: Affine | None = None,
    in_act: str = "none",
    affine: Affine | RunningNorm | None = None,
    act: str = "none",
    pool: bool = False,
    stats: bool = False,
) -> ConvOut:
    """As :func:`effnet_fast.backend.reference.depthwise`, one pass; fp32 and bf16."""
    in_scale, in_shift = in_affine or (None, None)
    scale, shift = scale_and_shift(affine)
    y, pooled, moments = kernels().depthwise_forward(
        *(x, weight, stride, padding, in_scale, in_shift, NUMBER[in_act]),
        *(scale, shift, NUMBER[act], pool, stats, -1),
    )
    return ConvOut(y, pooled if pool else None, moments if stats else None)


def depthwise_backward(
    incoming: DepthwiseIncoming,
    source: Source,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    residual_grad: Tensor | None = None,
    need_dx: bool = True,
    need_dw: bool = True,
    parts: bool = False,
) -> ConvGrad:
    """As :func:`effnet_fast.backend.reference.depthwise_backward`, one pass; fp32 and bf16."""
    incoming = incoming.used
    dx, dweight, sums = kernels().depthwise_backward(
        *(incoming.tensors, NUMBER[incoming.act], source.tensors, NUMBER[source.act]),
        *(weight, stride, padding, residual_grad, need_dx, need_dw),
    )
    if need_dw and parts:
        dweight = dweight.view(1, 1, -1)
    return conv_grad(source, dx, dweight, sums, need_dx, need_dw)
