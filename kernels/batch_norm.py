"""Launchers of BatchNorm's vector work on Triton; meaning and signatures are the reference's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import Affine, BatchNormGrad, BatchNormParamGrad, BatchNormStats, Norm, Running, move_running
from . import batch_norm_kernels
from .launch import config, launch, vector_like
from .runtime import ceil_div, channel_unit, per_column, plan_rows


def batch_norm_finalize(
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: Running | None = None,
    count: int = 0,
) -> BatchNormStats:
    """See :func:`effnet_fast.backend.reference.batch_norm_finalize`."""
    partials, _, channels = stats.shape
    vectors = vector_like(stats, 5, channels)
    inside = running is not None and _moves_inside(running, stats)
    buffers = running.tensors if running is not None and inside else (None, None, None)
    momentum = float(running.momentum) if running is not None and inside else 0.0  # type: ignore[arg-type]
    meta = config("batch_norm_finalize", stats)
    launch(
        batch_norm_kernels.batch_norm_finalize_kernel,
        ceil_div(channels, meta["BLOCK_N"]),
        (stats, weight, bias, vectors, *buffers),
        (eps, momentum, count / max(count - 1, 1), partials, channels),
        reads=[stats, weight, bias, *buffers],
        writes=[vectors, *buffers],
        **meta,
    )
    out = BatchNormStats(vectors)
    if running is not None and not inside:
        move_running(running, out, count)
    return out


def _moves_inside(running: Running, stats: Tensor) -> bool:
    """Whether the kernel can: not the average of all batches, whose weight it would have to wait for."""
    mean, var, batches, momentum = running
    if momentum is None or mean is None or var is None:
        return False
    dense = all(t.is_contiguous() and t.device == stats.device for t in (mean, var))
    return dense and (batches is None or (batches.dtype == torch.int64 and batches.device == stats.device))


def batch_norm_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> BatchNormStats:
    """See :func:`effnet_fast.backend.reference.batch_norm_fold`."""
    channels = mean.shape[0]
    vectors = vector_like(mean, 5, channels)
    meta = config("batch_norm_fold", mean)
    launch(
        batch_norm_kernels.batch_norm_fold_kernel,
        ceil_div(channels, meta["BLOCK_N"]),
        (weight, bias, mean, var, vectors),
        (eps, channels),
        reads=[weight, bias, mean, var],
        writes=[vectors],
        **meta,
    )
    return BatchNormStats(vectors)


def channel_stats(z: Tensor) -> Tensor:
    """See :func:`effnet_fast.backend.reference.channel_stats`."""
    n, channels, height, width = z.shape
    if z.numel() == 0:
        return z.new_zeros((1, 3, channels), dtype=torch.float32)
    meta = config("channel_stats", z)
    tiles = ceil_div(channels, meta["BLOCK_N"])
    plan = plan_rows(1, n * height * width, meta["BLOCK_M"], per_column(tiles))
    stats = vector_like(z, plan.groups, 3, channels)
    unit = channel_unit(channels)
    launch(
        batch_norm_kernels.channel_stats_kernel,
        plan.groups * tiles,
        (z, stats),
        (plan.length, plan.span, tiles, channels // unit, unit),
        reads=[z],
        writes=[stats],
        **meta,
    )
    return stats


def batch_norm_reduce(
    dy: Tensor,
    z: Tensor,
    norm: Norm,
    *,
    row_scale: Tensor | None = None,
    affine: Affine | None = None,
    act: str = "none",
) -> Tensor:
    """See :func:`effnet_fast.backend.reference.batch_norm_reduce`."""
    n, channels, height, width = z.shape
    if z.numel() == 0:
        return z.new_zeros((1, 2, channels), dtype=norm.mean.dtype)
    meta = config("batch_norm_reduce", z)
    segments = (1, n * height * width) if row_scale is None else (n, height * width)
    tiles = ceil_div(channels, meta["BLOCK_N"])
    plan = plan_rows(*segments, meta["BLOCK_M"], per_column(tiles))
    sums = vector_like(z, plan.groups, 2, channels)
    vectors = affine or (None, None)
    unit = channel_unit(channels)
    launch(
        batch_norm_kernels.batch_norm_reduce_kernel,
        plan.groups * tiles,
        (dy, z, row_scale, *vectors, *norm, sums),
        (*plan.arguments, tiles, channels // unit, unit),
        reads=[dy, z, row_scale, *vectors, *norm],
        writes=[sums],
        ACT=act,
        **meta,
    )
    return sums


def batch_norm_backward_finalize(
    sums: Tensor, count: int, stats: BatchNormStats, training: bool, dtype: torch.dtype | None = None
) -> BatchNormParamGrad:
    """See :func:`effnet_fast.backend.reference.batch_norm_backward_finalize`."""
    partials, _, channels = sums.shape
    kernel = batch_norm_kernels.batch_norm_backward_finalize_kernel
    meta = config("batch_norm_backward_finalize", sums)
    shares = float(count if training else 0)
    return _finalize(kernel, (sums,), (shares, partials, channels), stats, dtype, meta)


def gate_batch_norm_finalize(
    sums: Tensor,
    gate: Tensor | None,
    pool_grad: Tensor | None,
    count: int,
    stats: BatchNormStats,
    training: bool,
    dtype: torch.dtype | None = None,
) -> BatchNormParamGrad:
    """See :func:`effnet_fast.backend.reference.gate_batch_norm_finalize`."""
    n, channels = sums.shape[1], sums.shape[-1]
    parts = sums.shape[2] if sums.dim() == 4 else 1
    kernel = batch_norm_kernels.gate_batch_norm_finalize_kernel
    meta = config("gate_batch_norm_finalize", sums)
    shares = float(count if training else 0)
    return _finalize(
        kernel, (sums, gate, pool_grad), (shares, n * parts, parts, channels), stats, dtype, meta
    )


def _finalize(
    kernel: Any,
    inputs: tuple[Tensor | None, ...],
    scalars: tuple[Any, ...],
    stats: BatchNormStats,
    dtype: torch.dtype | None,
    meta: dict[str, int],
) -> BatchNormParamGrad:
    mean, _, invstd, scale, _ = stats.vectors.unbind(0)
    channels = mean.shape[0]
    params = torch.empty((2, channels), dtype=dtype or torch.float32, device=mean.device)
    slopes = vector_like(mean, 2, channels)
    launch(
        kernel,
        ceil_div(channels, meta["BLOCK_N"]),
        (*inputs, invstd, scale, params, slopes),
        scalars,
        reads=[*inputs, invstd, scale],
        writes=[params, slopes],
        **meta,
    )
    b, c = slopes.unbind(0)
    return BatchNormParamGrad(params, BatchNormGrad(scale, b, c, mean))
