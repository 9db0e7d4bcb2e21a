"""Reference of the depthwise convolution with fused prologue and epilogue, and of its backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...records import DepthwiseIncoming, Source
from ...types import Affine, ConvGrad, ConvOut, Padding, RunningNorm
from .activations import activation_grad
from .common import (
    apply_affine,
    batch_norm_input_grad,
    epilogue,
    normalize,
    partial_stats,
    per_sample,
    prologue,
    store,
    upcast,
)


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
    """Depthwise convolution: ``z = weight * pad(in_act(in_affine(x)))``, ``y = act(affine(z))``.

    Args:
        x: [N, C, H, W].
        weight: [C, 1, k, k], dtype of ``x`` or float32.
        stride: 1 or 2, both axes.
        padding: zeros around the *activated* input (left, right, top, bottom).
        pool: also return the mean of ``y`` (before rounding) over H and W, a backend in parts if it likes.
        stats: also return the statistics of ``y`` as stored; for raw outputs (no epilogue).
    """
    a = F.pad(prologue(x, in_affine, in_act), padding)
    z = F.conv2d(a, upcast(weight), stride=stride, groups=x.shape[1])
    full = epilogue(z, affine, act)
    y = store(full, x)
    return ConvOut(y, full.mean(dim=(2, 3)) if pool else None, partial_stats(y) if stats else None)


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
    """Backward of :func:`depthwise` with a raw output ``z``.

    Args:
        incoming: makes ``dz``, the prologue.
        source: what the forward read; with an affine it has a norm too.

    Returns:
        dx: behind an affine, ``g1 = da * act'(affine(x))`` of ``source``, the gradient of the affine's *output*;
            without one, the gradient of ``x``, plus ``residual_grad``.
        dweight: [C, 1, k, k]; with ``parts``, the rows that :func:`merge_weight_grads` takes.
        sums: behind an affine only, [P, 2, C] partial sums of ``g1`` (before rounding) and ``g1 * norm(x)``.
    """
    x, in_affine, in_act, _, in_norm = source
    channels, (h, w) = x.shape[1], x.shape[2:]
    left, right, top, bottom = padding
    dz = _dz(incoming)
    padded_shape = (x.shape[0], channels, h + top + bottom, w + left + right)
    dx = dweight = sums = None
    if need_dw:
        a = F.pad(prologue(x, in_affine, in_act), padding)
        dweight = torch.nn.grad.conv2d_weight(a, weight.shape, dz, stride=stride, groups=channels)
        dweight = dweight.reshape(1, 1, -1) if parts else dweight
    if need_dx or in_affine is not None:
        da = torch.nn.grad.conv2d_input(padded_shape, upcast(weight), dz, stride=stride, groups=channels)
        da = da[:, :, top : top + h, left : left + w]
        if in_affine is not None:
            assert in_norm is not None, "sums over x_hat need in_norm"
            da = da * activation_grad(apply_affine(x, in_affine), in_act)
            sums = torch.stack([da.sum(dim=(0, 2, 3)), (da * normalize(x, in_norm)).sum(dim=(0, 2, 3))])[None]
        elif residual_grad is not None:
            da = da + upcast(residual_grad)
        dx = store(da, x)
    return ConvGrad(dx, dweight, sums)


def _dz(incoming: DepthwiseIncoming) -> Tensor:
    dy, z, affine, act, gate, pool_grad, grad = incoming
    g = upcast(dy)
    if gate is not None:
        g = g * per_sample(gate)
    if pool_grad is not None:
        g = g + per_sample(pool_grad)
    if z is not None and act != "none":
        g = g * activation_grad(apply_affine(z, affine), act)
    return batch_norm_input_grad(g, z, grad)
