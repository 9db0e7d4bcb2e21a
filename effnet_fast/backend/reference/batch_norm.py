"""Reference of BatchNorm's vector work: statistics to affine, and the backward's reductions and formula.

The mathematics is that of :func:`torch.nn.functional.batch_norm` (Ioffe and Szegedy 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...types import (
    Affine,
    BatchNormGrad,
    BatchNormParamGrad,
    BatchNormStats,
    Norm,
    Running,
    RunningNorm,
    move_running,
)
from .activations import activation_grad
from .common import (
    apply_affine,
    batch_norm_input_grad,
    folded,
    normalize,
    partial_stats,
    per_sample,
    store,
    upcast,
)


def batch_norm_finalize(
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: Running | None = None,
    count: int = 0,
) -> BatchNormStats:
    """Merge partial statistics [P, 3, C] = (count, mean, M2) and derive the affine of a training BatchNorm.

    Chan's merge, in a fixed order: ``mean = sum n_i mean_i / n``, ``M2 = sum M2_i + n_i (mean_i - mean)^2``.
    ``weight`` and ``bias`` ([C], any floating dtype) may be ``None`` as in ``BatchNorm2d(affine=False)``.
    ``running`` is moved towards the statistics, in place; for that alone ``count`` says how many values they are of.
    """
    counts, means, m2 = stats.unbind(1)
    total = counts.sum(0).clamp_min(1)
    mean = (counts * means).sum(0) / total
    var = (m2.sum(0) + (counts * (means - mean).square()).sum(0)) / total
    out = batch_norm_fold(weight, bias, mean, var, eps)
    if running is not None:
        move_running(running, out, count)
    return out


def channel_stats(z: Tensor) -> Tensor:
    """Partial statistics [P, 3, C] = (count, mean, M2) of ``z`` as stored, for convolutions that are not ours."""
    return partial_stats(z)


def batch_norm_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> BatchNormStats:
    """The affine of a BatchNorm with known statistics: ``scale = weight * invstd``, ``shift = bias - mean * scale``.

    ``mean`` and ``var`` are [C], as ``weight`` and ``bias`` are, which may be ``None``; any floating dtype.
    """
    affine = folded(RunningNorm(weight, bias, mean, var, eps))
    mean, var = upcast(mean), upcast(var)
    return BatchNormStats(torch.stack([mean, var, torch.rsqrt(var + eps), *affine]))


def batch_norm_reduce(
    dy: Tensor,
    z: Tensor,
    norm: Norm,
    *,
    row_scale: Tensor | None = None,
    affine: Affine | None = None,
    act: str = "none",
) -> Tensor:
    """Sums the backward of a BatchNorm needs: [P, 2, C] partials of ``g`` and ``g * z_hat`` over N, H and W.

    ``g = row_scale * dy * act'(affine(z))``; ``row_scale`` is [N].
    """
    g = upcast(dy)
    if row_scale is not None:
        g = g * per_sample(row_scale)
    if act != "none":
        g = g * activation_grad(apply_affine(z, affine), act)
    return torch.stack([g.sum(dim=(0, 2, 3)), (g * normalize(z, norm)).sum(dim=(0, 2, 3))])[None]


def batch_norm_act_grad(
    dy: Tensor, z: Tensor, grad: BatchNormGrad, *, affine: Affine | None = None, act: str = "none"
) -> Tensor:
    """The gradient of a BatchNorm's input from that of the activation after it, in z's dtype.

    ``dz = grad.a * g + grad.b * (z - grad.mean) + grad.c`` with ``g = dy * act'(affine(z))``.
    """
    g = upcast(dy)
    if act != "none":
        g = g * activation_grad(apply_affine(z, affine), act)
    return store(batch_norm_input_grad(g, z, grad), z)


def batch_norm_backward_finalize(
    sums: Tensor, count: int, stats: BatchNormStats, training: bool, dtype: torch.dtype | None = None
) -> BatchNormParamGrad:
    """From the sums [P, 2, C] to the parameter gradients and the formula of the input's gradient.

    ``count`` is N*H*W. With ``training`` false (frozen statistics) the input's gradient is ``a * g`` alone.
    ``dtype`` is that of the parameters' gradients, by default the accumulation dtype.
    """
    params = sums.sum(0)
    dbias, dweight = params.unbind(0)
    norm, a = stats.norm, stats.affine.scale
    if training and count > 0:
        b = -a * norm.invstd * dweight / count
        c = -a * dbias / count
    else:
        b = c = torch.zeros_like(a)
    return BatchNormParamGrad(params.to(dtype or params.dtype), BatchNormGrad(a, b, c, norm.mean))
