"""Launchers of the two elementwise passes on Triton; meaning and signatures are the reference's."""

from __future__ import annotations

from torch import Tensor

from ..types import Affine, BatchNormGrad, RunningNorm
from . import elementwise_kernels
from .launch import config, empty_image, epilogue_vectors, launch, mean_of_nothing, sum_partials, vector_like
from .runtime import ceil_div, channel_unit, per_column, plan_rows


def affine_pool(z: Tensor, affine: Affine | None, act: str = "none") -> Tensor:
    """See :func:`effnet_fast.backend.reference.affine_pool`."""
    n, channels, height, width = z.shape
    if z.numel() == 0:
        return mean_of_nothing(z, n, channels)
    meta = config("affine_pool", z)
    tiles = ceil_div(channels, meta["BLOCK_N"])
    plan = plan_rows(n, height * width, meta["BLOCK_M"], per_column(tiles))
    pooled = vector_like(z, n, plan.splits, channels)
    vectors = affine or (None, None)
    unit = channel_unit(channels)
    launch(
        elementwise_kernels.affine_pool_kernel,
        plan.groups * tiles,
        (z, *vectors, pooled),
        (1.0 / (height * width), *plan.arguments, tiles, channels // unit, unit),
        reads=[z, *vectors],
        writes=[pooled],
        ACT=act,
        **meta,
    )
    return sum_partials(pooled)


def affine_residual(
    z: Tensor,
    affine: Affine | RunningNorm | None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See :func:`effnet_fast.backend.reference.affine_residual`."""
    n, channels, height, width = z.shape
    y = empty_image(n, channels, height, width, z)
    if z.numel() == 0:
        return y
    meta = config("affine_residual", z)
    segments = (1, n * height * width) if row_scale is None else (n, height * width)
    plan = plan_rows(*segments, meta["BLOCK_M"])
    vectors, eps = epilogue_vectors(affine)
    unit = channel_unit(channels)
    tiles = ceil_div(channels, meta["BLOCK_N"])
    launch(
        elementwise_kernels.affine_residual_kernel,
        plan.groups * tiles,
        (z, *vectors, row_scale, residual, y),
        (eps, *plan.arguments, tiles, channels // unit, unit),
        reads=[z, *vectors, row_scale, residual],
        writes=[y],
        ACT=act,
        **meta,
    )
    return y


def batch_norm_act_grad(
    dy: Tensor, z: Tensor, grad: BatchNormGrad, *, affine: Affine | None = None, act: str = "none"
) -> Tensor:
    """See :func:`effnet_fast.backend.reference.batch_norm_act_grad`."""
    n, channels, height, width = z.shape
    dz = empty_image(n, channels, height, width, z)
    if z.numel() == 0:
        return dz
    meta = config("batch_norm_act_grad", z)
    length = n * height * width
    vectors = affine or (None, None)
    unit = channel_unit(channels)
    tiles = ceil_div(channels, meta["BLOCK_N"])
    launch(
        elementwise_kernels.batch_norm_act_grad_kernel,
        ceil_div(length, meta["BLOCK_M"]) * tiles,
        (dy, z, *vectors, *grad, dz),
        (length, tiles, channels // unit, unit),
        reads=[dy, z, *vectors, *grad],
        writes=[dz],
        ACT=act,
        **meta,
    )
    return dz
