"""Pieces every reference op shares: broadcasting per channel, prologues, statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...types import Affine, BatchNormGrad, Norm, RunningNorm, accumulation_dtype
from .activations import activation


def per_channel(vector: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1]."""
    return vector[None, :, None, None]


def per_sample(matrix: Tensor) -> Tensor:
    """[N, C] -> [N, C, 1, 1]; a vector [N] -> [N, 1, 1, 1]."""
    return matrix.reshape(matrix.shape[0], matrix.shape[1] if matrix.dim() == 2 else 1, 1, 1)


def upcast(x: Tensor) -> Tensor:
    """To the accumulation dtype, so that every rounding happens once, at the store."""
    return x.to(accumulation_dtype(x.dtype))


def store(y: Tensor, like: Tensor) -> Tensor:
    """Round to the storage dtype of ``like`` in channels_last memory.

    Written into fresh memory because ``contiguous`` leaves the strides of [N, C, 1, 1] and C = 1 tensors
    as they are, and a fake kernel has to predict the strides exactly.
    """
    if torch._C._are_functorch_transforms_active():
        # Memory of its own cannot take what is batched.
        return y.to(like.dtype)
    out = torch.empty(y.shape, dtype=like.dtype, device=y.device, memory_format=torch.channels_last)
    return out.copy_(y)


def apply_affine(x: Tensor, affine: Affine | RunningNorm | None) -> Tensor:
    """``scale * x + shift`` in the accumulation dtype."""
    x = upcast(x)
    if isinstance(affine, RunningNorm):
        affine = folded(affine)
    return x if affine is None else per_channel(affine.scale) * x + per_channel(affine.shift)


def folded(norm: RunningNorm) -> Affine:
    """The affine that a BatchNorm with running statistics is, in the accumulation dtype."""
    scale = torch.rsqrt(upcast(norm.var) + norm.eps)
    if norm.weight is not None:
        scale = upcast(norm.weight) * scale
    shift = -upcast(norm.mean) * scale
    return Affine(scale, shift if norm.bias is None else upcast(norm.bias) + shift)


def normalize(z: Tensor, norm: Norm) -> Tensor:
    """``(z - mean) * invstd`` in the accumulation dtype."""
    return (upcast(z) - per_channel(norm.mean)) * per_channel(norm.invstd)


def prologue(x: Tensor, affine: Affine | None, act: str, gate: Tensor | None = None) -> Tensor:
    """``gate * act(affine(x))`` in the accumulation dtype."""
    a = activation(apply_affine(x, affine), act)
    return a if gate is None else a * per_sample(gate)


def epilogue(
    z: Tensor,
    affine: Affine | RunningNorm | None,
    act: str,
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(affine(z)) * row_scale + residual`` in the accumulation dtype."""
    y = activation(apply_affine(z, affine), act)
    if row_scale is not None:
        y = y * per_sample(row_scale)
    return y if residual is None else y + upcast(residual)


def batch_norm_input_grad(g: Tensor, z: Tensor | None, grad: BatchNormGrad | None) -> Tensor:
    """``a * g + b * (z - mean) + c``; ``g`` itself where there is no BatchNorm."""
    if grad is None or z is None:
        return g
    centred = upcast(z) - per_channel(grad.mean)
    return per_channel(grad.a) * g + per_channel(grad.b) * centred + per_channel(grad.c)


def partial_stats(z: Tensor) -> Tensor:
    """Statistics of the values as stored: [1, 3, C] = (count, mean, M2) over N, H and W."""
    z = upcast(z)
    count = z.shape[0] * z.shape[2] * z.shape[3]
    if count == 0:
        return z.new_zeros(1, 3, z.shape[1])
    mean = z.mean(dim=(0, 2, 3))
    m2 = (z - per_channel(mean)).square().sum(dim=(0, 2, 3))
    return torch.stack([torch.full_like(mean, count), mean, m2])[None]


def merge_weight_grads(
    rows: Sequence[Tensor | None], weights: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of several convolutions' weights from the parts in which their backwards leave them.

    Args:
        rows: of each weight [P, T, M], to be summed over P, or ``None`` where there is no gradient; element (m, t) of
            the weight seen as [M, T] is at [t, m].
        weights: give the gradients' shapes and dtypes; only those are looked at.

    Returns:
        The gradients, each dense, of its weight's shape and dtype, rounded once.
    """
    return tuple(
        None if part is None or weight is None else _merged(part).reshape(weight.shape).to(weight.dtype)
        for part, weight in zip(rows, weights, strict=True)
    )


def _merged(rows: Tensor) -> Tensor:
    total = rows[0] if rows.shape[0] == 1 else rows.sum(0)
    return total.t()
