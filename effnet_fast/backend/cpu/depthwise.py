"""The depthwise convolution and its backward: one native pass each."""

from __future__ import annotations

from torch import Tensor

from ...types import Affine, BatchNormGrad, ConvGrad, ConvOut, Norm, Padding, RunningNorm
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
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    z: Tensor | None = None,
    affine: Affine | None = None,
    act: str = "none",
    gate: Tensor | None = None,
    pool_grad: Tensor | None = None,
    grad: BatchNormGrad | None = None,
    in_affine: Affine | None = None,
    in_act: str = "none",
    in_norm: Norm | None = None,
    residual_grad: Tensor | None = None,
    need_dx: bool = True,
    need_dw: bool = True,
    parts: bool = False,
) -> ConvGrad:
    """As :func:`effnet_fast.backend.reference.depthwise_backward`, one pass; fp32 and bf16."""
    dx, dweight, sums = kernels().depthwise_backward(
        *(dy, x, weight, stride, padding, z, *(affine or (None, None)), NUMBER[act], gate, pool_grad),
        *(grad if grad is not None and z is not None else (None,) * 4),
        *(*(in_affine or (None, None)), NUMBER[in_act], *(in_norm or (None, None))),
        *(residual_grad, need_dx, need_dw, -1),
    )
    writes_dx = need_dx or in_affine is not None
    if need_dw and parts:
        dweight = dweight.view(1, 1, -1)
    return ConvGrad(dx if writes_dx else None, dweight if need_dw else None, sums if in_affine else None)
