"""Launchers of the depthwise convolution on Triton; meaning and signatures are the reference's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..records import DepthwiseIncoming, Source
from ..types import Affine, ConvGrad, ConvOut, Padding, RunningNorm
from . import depthwise_kernels
from .launch import (
    config,
    empty_image,
    epilogue_vectors,
    launch,
    mean_of_nothing,
    parts,
    sum_partials,
    vector_like,
)
from .runtime import ceil_div, channel_unit, per_column, plan_rows


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
    """See :func:`effnet_fast.backend.reference.depthwise`; images are dense NHWC, vectors contiguous fp32."""
    n, channels, height, width = x.shape
    kernel = weight.shape[-1]
    left, right, top, bottom = padding
    out_height = (height + top + bottom - kernel) // stride + 1
    out_width = (width + left + right - kernel) // stride + 1
    y = empty_image(n, channels, out_height, out_width, x)
    if y.numel() == 0:
        pooled = mean_of_nothing(x, n, channels) if pool else None
        return ConvOut(y, pooled, x.new_zeros((1, 3, channels), dtype=torch.float32) if stats else None)
    meta = config("depthwise_fwd", x)
    area = out_height * out_width
    tiles = ceil_div(channels, meta["BLOCK_N"])
    plan = plan_rows(n, area, meta["BLOCK_M"], per_column(tiles) if stats or pool else None)
    pooled = vector_like(x, n, plan.splits, channels) if pool else None
    partial = vector_like(x, plan.groups, 3, channels) if stats else None
    in_vectors = in_affine or (None, None)
    out_vectors, eps = epilogue_vectors(affine)
    launch(
        depthwise_kernels.depthwise_fwd_kernel,
        plan.groups * tiles,
        (x, weight, y, *in_vectors, *out_vectors, pooled, partial),
        (eps, 1.0 / area, *plan.arguments, tiles, height, width, out_width, left, top, *_channels(channels)),
        reads=[x, weight, *in_vectors, *out_vectors],
        writes=[y, pooled, partial],
        K=kernel,
        STRIDE=stride,
        IN_ACT=in_act,
        ACT=act,
        **meta,
    )
    return ConvOut(y, None if pooled is None else parts(pooled), partial)


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
    """See :func:`effnet_fast.backend.reference.depthwise_backward`; one kernel per gradient."""
    x, in_affine, in_act, _, in_norm = source
    dy, z, affine, act, gate, pool_grad, grad = incoming.used
    assert source.gate is None, "only pointwise has a gate in its source"
    need_dx = need_dx or in_affine is not None
    if x.numel() == 0 or dy.numel() == 0:
        empty = _empty_backward(x, weight, in_affine is not None, residual_grad, need_dx, need_dw)
        return empty._replace(dweight=empty.dweight.view(1, 1, -1)) if parts and need_dw else empty
    # Each kernel takes these in this order.
    behind = (*(affine or (None, None)), gate, pool_grad, *(grad or (None,) * 4))
    options = {"K": weight.shape[-1], "STRIDE": stride, "ACT": act, "IN_ACT": in_act}
    dweight = None
    if need_dw:
        rows = _weight_grad(dy, z, x, weight, padding, behind, in_affine or (None, None), options)
        dweight = rows if parts else sum_partials(rows.view(1, -1, weight.numel())).view(weight.shape)
    dx = sums = None
    if need_dx:
        n, channels, height, width = x.shape
        dx = empty_image(n, channels, height, width, x)
        meta = config("depthwise_dgrad", x)
        tiles = ceil_div(channels, meta["BLOCK_N"])
        programs = None if in_affine is None else per_column(tiles)
        plan = plan_rows(n, height * width, meta["BLOCK_M"], programs)
        inner: tuple[Tensor | None, ...] = (None,) * 4
        if in_affine is not None:
            assert in_norm is not None, "sums over x_hat need in_norm"
            inner = (*in_affine, *in_norm)
            sums = vector_like(x, plan.groups, 2, channels)
            residual_grad = None
        launch(
            depthwise_kernels.depthwise_dgrad_kernel,
            plan.groups * tiles,
            (dy, z, x, weight, dx, *behind, *inner, residual_grad, sums),
            (
                *(*plan.arguments, tiles, width, dy.shape[2], dy.shape[3], padding[0], padding[2]),
                *_channels(channels),
            ),
            reads=[dy, z, x if sums is not None else None, weight, *behind, *inner, residual_grad],
            writes=[dx, sums],
            **options,
            **meta,
        )
    return ConvGrad(dx, dweight, sums)


def _weight_grad(
    dy: Tensor,
    z: Tensor | None,
    x: Tensor,
    weight: Tensor,
    padding: Padding,
    behind: tuple[Tensor | None, ...],
    in_affine: tuple[Tensor | None, ...],
    options: dict[str, Any],
) -> Tensor:
    n, channels, height, width = x.shape
    kernel = options["K"]
    meta = config("depthwise_wgrad", x)
    tiles = ceil_div(channels, meta["BLOCK_N"])
    out_height, out_width = dy.shape[2:]
    # A program per row of taps.
    plan = plan_rows(n, out_height * out_width, meta["BLOCK_M"], per_column(tiles * kernel))
    partial = vector_like(x, plan.groups, 1, channels * kernel * kernel)
    launch(
        depthwise_kernels.depthwise_wgrad_kernel,
        plan.groups * tiles * kernel,
        (dy, z, x, partial, *behind, *in_affine),
        (*plan.arguments, tiles, height, width, out_width, padding[0], padding[2], *_channels(channels)),
        reads=[dy, z, x, *behind, *in_affine],
        writes=[partial],
        **options,
        **meta,
        TAPS=1 << (kernel - 1).bit_length(),
    )
    return partial


def _empty_backward(
    x: Tensor, weight: Tensor, with_sums: bool, residual_grad: Tensor | None, need_dx: bool, need_dw: bool
) -> ConvGrad:
    dx = empty_image(*x.shape, like=x).zero_() if need_dx else None
    if dx is not None and residual_grad is not None and not with_sums:
        dx.copy_(residual_grad)
    return ConvGrad(
        dx,
        torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if need_dw else None,
        x.new_zeros((1, 2, x.shape[1]), dtype=torch.float32) if with_sums else None,
    )


def _channels(channels: int) -> tuple[int, int]:
    unit = channel_unit(channels)
    return channels // unit, unit
