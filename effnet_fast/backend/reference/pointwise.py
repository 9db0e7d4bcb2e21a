"""Reference of the 1x1 convolution with fused prologue and epilogue, and of its backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...records import PointwiseIncoming, Source
from ...types import Affine, ConvGrad, ConvOut, Norm, RunningNorm
from .activations import activation, activation_grad
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


def pointwise(
    x: Tensor,
    weight: Tensor,
    *,
    in_affine: Affine | None = None,
    in_act: str = "none",
    gate: Tensor | None = None,
    affine: Affine | RunningNorm | None = None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
    pool: bool = False,
    stats: bool = False,
) -> ConvOut:
    """1x1 convolution: ``z = weight . (gate * in_act(in_affine(x)))``, ``y = act(affine(z)) * row_scale + residual``.

    Args:
        x: [N, Cin, H, W].
        weight: [Cout, Cin], dtype of ``x`` or float32.
        in_affine, in_act, gate: the prologue; ``gate`` is [N, Cin].
        affine, act, row_scale, residual: the epilogue; ``row_scale`` is [N], ``residual`` as ``y``.
        pool: also return the mean of ``y`` (before rounding) over H and W, a backend in parts if it likes.
        stats: also return the statistics of ``y`` as stored; for raw outputs (no epilogue).
    """
    a = prologue(x, in_affine, in_act, gate)
    z = F.conv2d(a, upcast(weight)[:, :, None, None])
    full = epilogue(z, affine, act, row_scale, residual)
    y = store(full, x)
    return ConvOut(y, full.mean(dim=(2, 3)) if pool else None, partial_stats(y) if stats else None)


def pointwise_backward(
    incoming: PointwiseIncoming,
    source: Source,
    weight: Tensor,
    *,
    residual_grad: Tensor | None = None,
    need_dx: bool = True,
    need_dw: bool = True,
    parts: bool = False,
) -> ConvGrad:
    """Backward of :func:`pointwise` with a raw output ``z``.

    Args:
        incoming: makes ``dz``, the prologue.
        source: what the forward read; with an affine it has a norm too.

    Returns:
        dx: without the source's affine, the gradient of ``x`` plus ``residual_grad``. With it, ``G = weight^T . dz``,
            the gradient of the *gated activation*, left to the depthwise backward to finish.
        dweight: [Cout, Cin], the gradient of the weight against the recomputed input.
        sums: behind an affine only, [5, N, Cin], sums over H and W with a = act(n), n = affine(x), x_hat = norm(x) of
            ``source``: ``sum G*a``, ``sum G*act'``, ``sum G*act'*x_hat``, ``sum act'``,
            ``sum act'*x_hat``. Everything squeeze-and-excite and the BatchNorm before it need.

        With ``parts``, ``sums`` may be [5, N, P, C], to be summed over P, and ``dweight`` is the rows that
        :func:`merge_weight_grads` takes.
    """
    dy, z, grad, row_scale = incoming
    x, in_affine, in_act, gate, in_norm = source
    g = upcast(dy)
    if row_scale is not None:
        g = g * per_sample(row_scale)
    dz = batch_norm_input_grad(g, z, grad)
    dx = dweight = sums = None
    if need_dw:
        a = prologue(x, in_affine, in_act, gate)
        dweight = torch.einsum("nohw,nihw->oi", dz, a)
        dweight = dweight.view(1, 1, -1) if parts else dweight
    if need_dx or in_affine is not None:
        full = F.conv2d(dz, upcast(weight).t()[:, :, None, None])
        if in_affine is not None:
            assert in_norm is not None, "sums over x_hat need in_norm"
            sums = _gate_and_norm_sums(full, x, in_affine, in_act, in_norm)
        elif residual_grad is not None:
            full = full + upcast(residual_grad)
        dx = store(full, x)
    return ConvGrad(dx, dweight, sums)


def _gate_and_norm_sums(g: Tensor, x: Tensor, affine: Affine, act: str, norm: Norm) -> Tensor:
    n = apply_affine(x, affine)
    derivative = activation_grad(n, act)
    x_hat = normalize(x, norm)
    terms = (g * activation(n, act), g * derivative, g * derivative * x_hat, derivative, derivative * x_hat)
    return torch.stack([t.sum(dim=(2, 3)) for t in terms])
