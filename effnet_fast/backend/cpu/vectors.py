"""BatchNorm's and squeeze-and-excite's formulas on small vectors: one native call each."""

from __future__ import annotations

import torch
from torch import Tensor

from ...types import (
    BatchNormGrad,
    BatchNormParamGrad,
    BatchNormStats,
    Running,
    SqueezeExciteGrad,
    move_running,
)
from .entry_points import NUMBER, kernels, wide


def batch_norm_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> BatchNormStats:
    """As :func:`effnet_fast.backend.reference.batch_norm_fold`; any dtype."""
    return BatchNormStats(kernels().batch_norm_fold(*map(wide, (weight, bias, mean, var)), eps))


def batch_norm_finalize(
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: Running | None = None,
    count: int = 0,
) -> BatchNormStats:
    """As :func:`effnet_fast.backend.reference.batch_norm_finalize`; the parts merged in double."""
    out = BatchNormStats(kernels().batch_norm_finalize(stats, wide(weight), wide(bias), eps))
    if running is not None:
        move_running(running, out, count)
    return out


def batch_norm_backward_finalize(
    sums: Tensor, count: int, stats: BatchNormStats, training: bool, dtype: torch.dtype | None = None
) -> BatchNormParamGrad:
    """As :func:`effnet_fast.backend.reference.batch_norm_backward_finalize`; fp32 vectors, the parts merged in double."""
    vectors = stats.vectors
    params, formula = kernels().batch_norm_backward_finalize(sums, count, vectors, training)
    b, c = formula.unbind(0)
    return BatchNormParamGrad(params.to(dtype or params.dtype), BatchNormGrad(vectors[3], b, c, vectors[0]))


def gate_batch_norm_sums(sums: Tensor, gate: Tensor | None, pool_grad: Tensor | None) -> Tensor:
    """As :func:`effnet_fast.backend.reference.gate_batch_norm_sums`; fp32 vectors."""
    return kernels().gate_batch_norm_sums(sums, gate, pool_grad)


def gate_batch_norm_finalize(
    sums: Tensor,
    gate: Tensor | None,
    pool_grad: Tensor | None,
    count: int,
    stats: BatchNormStats,
    training: bool,
    dtype: torch.dtype | None = None,
) -> BatchNormParamGrad:
    """As :func:`effnet_fast.backend.reference.gate_batch_norm_finalize`; fp32 vectors."""
    rows = gate_batch_norm_sums(sums, gate, pool_grad)
    return batch_norm_backward_finalize(rows, count, stats, training, dtype)


def squeeze_excite(
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
) -> Tensor:
    """As :func:`effnet_fast.backend.reference.squeeze_excite`; ``pooled`` fp32, weights fp32 or bf16."""
    pooled = pooled if pooled.dim() == 2 else pooled.sum(1)
    b1 = None if b1 is None else b1.to(w1.dtype)
    b2 = None if b2 is None else b2.to(w2.dtype)
    return kernels().squeeze_excite(pooled, w1, b1, w2, b2, NUMBER[act], NUMBER[gate_act])


def squeeze_excite_backward(
    dgate: Tensor,
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
    area: int = 1,
) -> SqueezeExciteGrad:
    """As :func:`effnet_fast.backend.reference.squeeze_excite_backward`; ``pooled`` fp32, weights fp32 or bf16."""
    bias1, bias2 = (None if b is None else b.to(pooled.dtype) for b in (b1, b2))
    dpooled, *gradients = kernels().squeeze_excite_backward(
        dgate, pooled, w1, bias1, w2.to(w1.dtype), bias2, NUMBER[act], NUMBER[gate_act]
    )
    dpooled = dpooled if area == 1 else dpooled.div_(area)
    return SqueezeExciteGrad.of(dpooled, gradients, (w1, b1, w2, b2))
