"""What the backward of both convolution primitives shares: from output gradients to the raw output's gradient.

These formulas serve the primitives as building blocks and are plain tensor operations. The block op
(:mod:`effnet_fast.ops.mbconv`) does not come through here: its backward fuses them into the kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backend.reference.activations import activation, activation_grad
from ..backend.reference.common import apply_affine, per_channel, per_sample, upcast
from ..records import Source
from ..types import Affine, Norm
from .checks import channels_last


class EpilogueGrad(NamedTuple):
    dz: Tensor  # gradient of the raw output, dtype of the output
    dscale: Tensor | None
    dshift: Tensor | None
    drow_scale: Tensor | None


def maybe_affine(scale: Tensor | None, shift: Tensor | None) -> Affine | None:
    return None if scale is None or shift is None else Affine(scale, shift)


def source_of(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, act: str, gate: Tensor | None = None
) -> Source:
    """What a primitive's backward reads again; sums against ``x`` itself (mean 0, invstd 1) are the scale's gradient."""
    itself = None if scale is None else Norm(torch.zeros_like(scale), torch.ones_like(scale))
    return Source(channels_last(x), maybe_affine(scale, shift), act, gate, itself)


def as_weight(gradient: Tensor | None, weight: Tensor | None) -> Tensor | None:
    """A weight's gradient in the weight's shape and strides, without a copy where the order in memory is the same.

    PyTorch's convolutions do so, and DistributedDataParallel's buckets count on it: a channels_last [Cout, Cin, 1, 1] is laid
    out as a [Cout, Cin], but its strides are others.
    """
    if gradient is None or weight is None or gradient.stride() == weight.stride():
        return gradient
    if gradient.is_contiguous() and weight.is_contiguous():
        return gradient.as_strided(weight.shape, weight.stride())
    return torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient.view(weight.shape))


def merge_stats(stats: Tensor) -> Tensor:
    """Partial statistics [P, 3, C] -> [2, C] (mean, biased variance)."""
    count, means, m2 = stats.unbind(1)
    total = count.sum(0).clamp_min(1)
    mean = (count * means).sum(0) / total
    return torch.stack([mean, (m2.sum(0) + (count * (means - mean).square()).sum(0)) / total])


def epilogue_backward(
    grad_y: Tensor | None,
    grad_pooled: Tensor | None,
    grad_stats: Tensor | None,
    z: Tensor,
    stats: Tensor,
    affine: Affine | None,
    act: str,
    row_scale: Tensor | None = None,
) -> EpilogueGrad:
    """Backward of ``y = act(affine(z)) * row_scale``, ``pooled = mean(y)``, ``stats = (mean, var)`` of z.

    A gradient is ``None`` where its output was not used (or not asked for).
    """
    wide = upcast(z)
    area = z.shape[2] * z.shape[3]
    g = torch.zeros_like(wide) if grad_y is None else upcast(grad_y)
    if grad_pooled is not None and grad_pooled.numel():
        g = g + per_sample(grad_pooled / area)
    n = apply_affine(z, affine)
    drow_scale = dscale = dshift = None
    if row_scale is not None:
        drow_scale = (g * activation(n, act)).sum(dim=(1, 2, 3))
        g = g * per_sample(row_scale)
    dz = g * activation_grad(n, act)
    if affine is not None:
        dscale, dshift = (dz * wide).sum(dim=(0, 2, 3)), dz.sum(dim=(0, 2, 3))
        dz = dz * per_channel(affine.scale)
    if grad_stats is not None and grad_stats.numel():
        count = max(z.shape[0] * area, 1)
        centred = wide - per_channel(stats[0])
        dz = dz + per_channel(grad_stats[0] / count) + centred * per_channel(2 * grad_stats[1] / count)
    return EpilogueGrad(dz.to(z.dtype), dscale, dshift, drow_scale)
