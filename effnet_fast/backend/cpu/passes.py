"""Passes over a tensor."""

from __future__ import annotations

from torch import Tensor

from ...types import Affine, BatchNormGrad, Norm, RunningNorm
from .entry_points import NUMBER, kernels, per_channel, scale_and_shift, wide


def affine_pool(z: Tensor, affine: Affine | None, act: str = "none") -> Tensor:
    """As :func:`effnet_fast.backend.reference.affine_pool`; fp32 and bf16."""
    scale, shift = affine or (None, None)
    return kernels().elementwise(z, scale, shift, NUMBER[act], None, None, True, False)[1]


def affine_residual(
    z: Tensor,
    affine: Affine | RunningNorm | None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """As :func:`effnet_fast.backend.reference.affine_residual`; fp32 and bf16."""
    scale, shift = scale_and_shift(affine)
    multiplier = per_channel(row_scale, z.shape[1])
    return kernels().elementwise(z, scale, shift, NUMBER[act], multiplier, residual, False, True)[0]


def batch_norm_reduce(
    dy: Tensor,
    z: Tensor,
    norm: Norm,
    *,
    row_scale: Tensor | None = None,
    affine: Affine | None = None,
    act: str = "none",
) -> Tensor:
    """As :func:`effnet_fast.backend.reference.batch_norm_reduce`; fp32 and bf16."""
    scale, shift = affine or (None, None)
    return kernels().batch_norm_reduce(dy, z, *norm, wide(row_scale), scale, shift, NUMBER[act])


def batch_norm_act_grad(
    dy: Tensor, z: Tensor, grad: BatchNormGrad, *, affine: Affine | None = None, act: str = "none"
) -> Tensor:
    """As :func:`effnet_fast.backend.reference.batch_norm_act_grad`; fp32 and bf16."""
    scale, shift = affine or (None, None)
    return kernels().batch_norm_input_grad(dy, z, *grad, None, scale, shift, NUMBER[act])


def channel_stats(z: Tensor) -> Tensor:
    """As :func:`effnet_fast.backend.reference.channel_stats`; fp32 and bf16."""
    return kernels().channel_stats(z)
