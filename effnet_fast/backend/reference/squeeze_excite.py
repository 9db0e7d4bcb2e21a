"""Reference of squeeze-and-excite's gate (Hu et al. 2018): two small fully connected layers per image."""

from __future__ import annotations

import torch
from torch import Tensor

from ...types import BatchNormParamGrad, BatchNormStats, SqueezeExciteGrad
from .activations import activation, activation_grad
from .batch_norm import batch_norm_backward_finalize
from .common import upcast


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ upcast(weight).to(x.dtype).t()
    return y if bias is None else y + bias.to(x.dtype)


def squeeze_excite(
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
) -> Tensor:
    """``gate = gate_act(w2 . act(w1 . pooled + b1) + b2)``, [N, C] in the accumulation dtype.

    Args:
        pooled: [N, C], or [N, P, C] in P parts to be summed; accumulation dtype.
        w1, b1: [R, C] and [R]; w2, b2: [C, R] and [C]; any floating dtype; a bias may be ``None``.
    """
    pooled = pooled if pooled.dim() == 2 else pooled.sum(1)
    hidden = activation(_linear(pooled, w1, b1), act)
    return activation(_linear(hidden, w2, b2), gate_act)


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
    """Backward of :func:`squeeze_excite`; the two small layers are recomputed, nothing but inputs is needed.

    Args:
        dgate: [N, C], or [N, P, C] in P parts to be summed, as ``pooled``.
        area: what ``dpooled`` is divided by: H*W makes of it the gradient of every pooled pixel.
    """
    dgate, pooled = (t if t.dim() == 2 else t.sum(1) for t in (dgate, pooled))
    n1 = _linear(pooled, w1, b1)
    hidden = activation(n1, act)
    n2 = _linear(hidden, w2, b2)
    dn2 = dgate * activation_grad(n2, gate_act)
    dn1 = (dn2 @ w2.to(dn2.dtype)) * activation_grad(n1, act)
    gradients = (dn1.t() @ pooled, dn1.sum(0), dn2.t() @ hidden, dn2.sum(0))
    return SqueezeExciteGrad.of(dn1 @ w1.to(dn1.dtype) / area, gradients, (w1, b1, w2, b2))


def gate_batch_norm_sums(sums: Tensor, gate: Tensor | None, pool_grad: Tensor | None) -> Tensor:
    """The reductions of the BatchNorm before squeeze-and-excite, with no pass over the tensor.

    From the sums of ``pointwise_backward``, [5, N, C] or [5, N, P, C] in P parts, with g = (G * gate + pool_grad) * act':
    ``sum g = gate * S2 + pool_grad * S4`` and ``sum g * z_hat = gate * S3 + pool_grad * S5``, one row per image.

    Args:
        gate: [N, C] or ``None`` (no squeeze-and-excite).
        pool_grad: [N, C], gradient of ``pooled`` divided by H*W, or ``None``.

    Returns:
        [N, 2, C].
    """
    sums = sums if sums.dim() == 3 else sums.sum(2)
    rows = sums[1:3]
    if gate is not None:
        rows = rows * gate
    if pool_grad is not None:
        rows = rows + pool_grad * sums[3:5]
    return rows.transpose(0, 1).contiguous() if rows.numel() else torch.zeros_like(rows).transpose(0, 1)


def gate_batch_norm_finalize(
    sums: Tensor,
    gate: Tensor | None,
    pool_grad: Tensor | None,
    count: int,
    stats: BatchNormStats,
    training: bool,
    dtype: torch.dtype | None = None,
) -> BatchNormParamGrad:
    """:func:`gate_batch_norm_sums` and :func:`batch_norm_backward_finalize` of what it returns."""
    rows = gate_batch_norm_sums(sums, gate, pool_grad)
    return batch_norm_backward_finalize(rows, count, stats, training, dtype)
