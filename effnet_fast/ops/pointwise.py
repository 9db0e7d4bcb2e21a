"""1x1 convolution as an autograd op, with fused prologue and epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch
from ..backend.reference.activations import activation_grad
from ..backend.reference.common import apply_affine, per_channel, per_sample
from ..records import PointwiseIncoming
from ..types import ConvOut, accumulation_dtype
from . import checks
from .conv_autograd import as_weight, epilogue_backward, maybe_affine, merge_stats, source_of
from .declare import differentiable, kernel_op


def pointwise(
    x: Tensor,
    weight: Tensor,
    *,
    in_affine: tuple[Tensor, Tensor] | None = None,
    in_act: str = "none",
    gate: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
    pool: bool = False,
    stats: bool = False,
) -> ConvOut:
    """1x1 convolution ``z = weight . (gate * in_act(in_affine(x)))``, ``y = act(affine(z)) * row_scale + residual``.

    As :func:`torch.nn.functional.conv2d` with a 1x1 kernel, fused with what surrounds it in an MBConv block.

    Args:
        x: [N, Cin, H, W]; float32, float16, bfloat16 (or float64 on the reference backend). Computed in
            channels_last memory; other layouts are copied first.
        weight: [Cout, Cin] or [Cout, Cin, 1, 1], dtype and device of ``x``.
        in_affine, in_act, gate: prologue; ``in_affine`` is (scale, shift), each [Cin]; ``gate`` is [N, Cin].
        affine, act, row_scale, residual: epilogue; ``affine`` is (scale, shift), each [Cout]; ``row_scale`` is
            [N] (stochastic depth); ``residual`` is [N, Cout, H, W] in the dtype of ``x``.
        pool: also return ``pooled`` [N, Cout], the mean of ``y`` over H and W.
        stats: also return ``stats`` [2, Cout], mean and biased variance of ``y`` over N, H, W; only without an epilogue.

    Returns:
        ``(y, pooled, stats)``; ``pooled`` and ``stats`` are ``None`` unless asked for. All are differentiable.

    Raises:
        EffnetFastError: an argument of the wrong kind, shape, dtype or device.
        BackendError: no backend can run it.
    """
    op = "ops.pointwise"
    checks.check_image(op, "x", x)
    n, channels, height, width = x.shape
    if not isinstance(weight, Tensor) or weight.dim() not in (2, 4):
        raise checks.fail(op, "weight", "[Cout, Cin] or [Cout, Cin, 1, 1]", checks.describe(weight))
    out_channels = weight.shape[0]
    checks.check_tensor(op, "weight", weight, (out_channels, channels, 1, 1)[: weight.dim()], x)
    checks.check_activation(op, "in_act", in_act)
    checks.check_activation(op, "act", act)
    in_scale, in_shift = checks.affine_vectors(
        op, "in_affine", in_affine, in_act if gate is None else "gated", x, channels
    )
    scale, shift = checks.affine_vectors(op, "affine", affine, "none", x, out_channels)
    gate = None if gate is None else checks.vector(op, "gate", gate, (n, channels), x)
    row_scale = None if row_scale is None else checks.vector(op, "row_scale", row_scale, (n,), x)
    if residual is not None:
        checks.check_tensor(op, "residual", residual, (n, out_channels, height, width), x)
    plain = affine is None and act == "none" and row_scale is None and residual is None
    if stats and not plain:
        raise checks.fail(op, "stats", "False with an epilogue (statistics are of the raw output)", True)
    y, pooled, moments = _pointwise(
        x,
        weight,
        *(in_scale, in_shift, in_act, gate),
        *(scale, shift, act, row_scale, residual),
        *(pool, stats),
    )
    return ConvOut(y, pooled if pool else None, moments if stats else None)


@kernel_op("pointwise")
def _pointwise(
    x: Tensor,
    weight: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_act: str,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    row_scale: Tensor | None,
    residual: Tensor | None,
    pool: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    run = dispatch.select("pointwise", x, stats=stats)
    out = run(
        checks.channels_last(x),
        weight.contiguous().flatten(1),
        in_affine=maybe_affine(in_scale, in_shift),
        in_act=in_act,
        gate=gate,
        affine=maybe_affine(scale, shift),
        act=act,
        row_scale=row_scale,
        residual=None if residual is None else checks.channels_last(residual),
        pool=pool,
        stats=stats,
    )
    absent = x.new_empty(0, dtype=accumulation_dtype(x.dtype))
    return (
        out.y,
        absent if out.mean is None else out.mean,
        absent.clone() if out.stats is None else merge_stats(out.stats),
    )


@_pointwise.register_fake
def _(x, weight, in_scale, in_shift, in_act, gate, scale, shift, act, row_scale, residual, pool, stats):  # type: ignore[no-untyped-def]
    n, _, height, width = x.shape
    c = weight.shape[0]
    wide = accumulation_dtype(x.dtype)
    y = torch.empty((n, c, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return y, x.new_empty((n, c) if pool else 0, dtype=wide), x.new_empty((2, c) if stats else 0, dtype=wide)


@kernel_op("pointwise_backward")
def _pointwise_backward(
    dz: Tensor,
    x: Tensor,
    weight: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_act: str,
    gate: Tensor | None,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    run = dispatch.select("pointwise_backward", x)
    out = run(
        PointwiseIncoming(checks.channels_last(dz)),
        source_of(x, in_scale, in_shift, in_act, gate),
        weight.contiguous().flatten(1),
        need_dx=need_dx,
        need_dw=need_dw,
    )
    absent = x.new_empty(0)
    wide = absent.to(accumulation_dtype(x.dtype), copy=True)
    return (
        absent if out.dx is None else out.dx,
        wide if out.dweight is None else out.dweight,
        wide.clone() if out.sums is None else out.sums,
    )


@_pointwise_backward.register_fake
def _(dz, x, weight, in_scale, in_shift, in_act, gate, need_dx, need_dw):  # type: ignore[no-untyped-def]
    wide = accumulation_dtype(x.dtype)
    with_affine = in_scale is not None
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return (
        dx if need_dx or with_affine else x.new_empty(0),
        x.new_empty(weight.shape[:2] if need_dw else 0, dtype=wide),
        x.new_empty((5, *x.shape[:2]) if with_affine else 0, dtype=wide),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, in_scale, in_shift, in_act, gate, scale, shift, act, row_scale, residual, _, stats = inputs
    # A raw output is its own z; behind an epilogue z is computed again rather than kept.
    raw = scale is None and act == "none" and row_scale is None and residual is None
    ctx.save_for_backward(
        *(x, weight, in_scale, in_shift, gate, scale, shift, row_scale),
        *(output[0] if raw else None, output[2] if stats else None),
    )
    ctx.attributes = (in_act, act, residual is not None)


def _backward(ctx, grad_y, grad_pooled, grad_stats):  # type: ignore[no-untyped-def]
    x, weight, in_scale, in_shift, gate, scale, shift, row_scale, z, moments = ctx.saved_tensors
    in_act, act, has_residual = ctx.attributes
    if z is None:
        epilogue = (None, None, "none", None, None, False, False)
        z = _pointwise(x, weight, in_scale, in_shift, in_act, gate, *epilogue)[0]
    grads = epilogue_backward(
        grad_y, grad_pooled, grad_stats, z, moments, maybe_affine(scale, shift), act, row_scale
    )
    need_dx, need_dw = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    dx, dweight, sums = _pointwise_backward(
        grads.dz, x, weight, in_scale, in_shift, in_act, gate, need_dx, need_dw
    )
    din_scale = din_shift = dgate = dresidual = None
    if in_scale is not None:
        slope = in_scale if gate is None else gate * in_scale
        dgate = sums[0] if gate is not None else None
        per_image = sums[1:3] if gate is None else sums[1:3] * gate
        din_shift, din_scale = per_image.sum(1).unbind(0)
        n = apply_affine(x, maybe_affine(in_scale, in_shift))
        slope = per_channel(slope) if gate is None else per_sample(slope)
        dx = (dx * activation_grad(n, in_act) * slope).to(x.dtype)
    if has_residual and ctx.needs_input_grad[10]:
        dresidual = torch.zeros_like(z) if grad_y is None else grad_y
        if grad_pooled is not None and grad_pooled.numel():
            dresidual = (dresidual + per_sample(grad_pooled / (z.shape[2] * z.shape[3]))).to(z.dtype)
    return (
        dx if need_dx else None,
        as_weight(dweight.to(weight.dtype), weight) if need_dw else None,
        *(din_scale, din_shift, None, dgate),
        *(grads.dscale, grads.dshift, None, grads.drow_scale, dresidual),
        *(None, None),
    )


_SAVED = {0: 0, 1: 1, 2: 2, 3: 3, 5: 4, 6: 5, 7: 6, 9: 7}
differentiable(_pointwise, _backward, _setup_context, _SAVED, unneeded=(10,))
