"""Depthwise convolution as an autograd op, with fused prologue and epilogue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch
from ..records import DepthwiseIncoming
from ..types import ConvOut, accumulation_dtype
from . import checks
from .conv_autograd import as_weight, epilogue_backward, maybe_affine, merge_stats, source_of
from .declare import differentiable, kernel_op


def depthwise(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    *,
    in_affine: tuple[Tensor, Tensor] | None = None,
    in_act: str = "none",
    affine: tuple[Tensor, Tensor] | None = None,
    act: str = "none",
    pool: bool = False,
    stats: bool = False,
) -> ConvOut:
    """Depthwise convolution ``z = weight * pad(in_act(in_affine(x)))`` with ``y = act(affine(z))``.

    As :func:`torch.nn.functional.conv2d` with ``groups = C``, fused with what surrounds it in an MBConv block.

    Args:
        x: [N, C, H, W]; float32, float16, bfloat16 (or float64 on the reference backend). Computed in
            channels_last memory; other layouts are copied first.
        weight: [C, 1, k, k], k in 3, 5, 7, dtype and device of ``x``.
        stride: 1 or 2.
        padding: zeros added around the *activated* input: an int or (left, right, top, bottom), as
            :func:`torch.nn.functional.pad` orders them.
        in_affine, in_act: prologue, applied to every element as it is loaded; ``in_affine`` is (scale, shift), each [C].
        affine, act: epilogue.
        pool: also return ``pooled`` [N, C], the mean of ``y`` over H and W.
        stats: also return ``stats`` [2, C], mean and biased variance of ``y`` over N, H, W; only without an epilogue.

    Returns:
        ``(y, pooled, stats)``; ``pooled`` and ``stats`` are ``None`` unless asked for. All are differentiable.

    Raises:
        EffnetFastError: an argument of the wrong kind, shape, dtype or device.
        BackendError: no backend can run it.
    """
    op = "ops.depthwise"
    checks.check_image(op, "x", x)
    channels = x.shape[1]
    kernel = checks.stencil_size(op, "weight", weight)
    checks.check_tensor(op, "weight", weight, (channels, 1, kernel, kernel), x)
    checks.check_stride(op, "stride", stride)
    sides = checks.check_padding(op, padding)
    checks.output_size(op, x, kernel, stride, sides)
    checks.check_activation(op, "in_act", in_act)
    checks.check_activation(op, "act", act)
    if stats and (affine is not None or act != "none"):
        raise checks.fail(op, "stats", "False with an epilogue (statistics are of the raw output)", True)
    in_scale, in_shift = checks.affine_vectors(op, "in_affine", in_affine, in_act, x, channels)
    scale, shift = checks.affine_vectors(op, "affine", affine, "none", x, channels)
    y, pooled, moments = _depthwise(
        x, weight, stride, sides, in_scale, in_shift, in_act, scale, shift, act, pool, stats
    )
    return ConvOut(y, pooled if pool else None, moments if stats else None)


@kernel_op("depthwise")
def _depthwise(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_act: str,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    pool: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    run = dispatch.select("depthwise", x, kernel_size=weight.shape[-1], stride=stride, stats=stats)
    out = run(
        checks.channels_last(x),
        weight.contiguous(),
        stride,
        tuple(padding),
        in_affine=maybe_affine(in_scale, in_shift),
        in_act=in_act,
        affine=maybe_affine(scale, shift),
        act=act,
        pool=pool,
        stats=stats,
    )
    absent = x.new_empty(0, dtype=accumulation_dtype(x.dtype))
    return (
        out.y,
        absent if out.mean is None else out.mean,
        absent.clone() if out.stats is None else merge_stats(out.stats),
    )


@_depthwise.register_fake
def _(x, weight, stride, padding, in_scale, in_shift, in_act, scale, shift, act, pool, stats):  # type: ignore[no-untyped-def]
    n, c = x.shape[:2]
    height, width = checks.output_size("ops.depthwise", x, weight.shape[-1], stride, tuple(padding))
    wide = accumulation_dtype(x.dtype)
    y = torch.empty((n, c, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return y, x.new_empty((n, c) if pool else 0, dtype=wide), x.new_empty((2, c) if stats else 0, dtype=wide)


@kernel_op("depthwise_backward")
def _depthwise_backward(
    dz: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_act: str,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    run = dispatch.select("depthwise_backward", x, kernel_size=weight.shape[-1], stride=stride)
    out = run(
        DepthwiseIncoming(checks.channels_last(dz)),
        source_of(x, in_scale, in_shift, in_act),
        weight.contiguous(),
        stride,
        tuple(padding),
        need_dx=need_dx,
        need_dw=need_dw,
    )
    absent = x.new_empty(0)
    wide = absent.to(accumulation_dtype(x.dtype), copy=True)
    return (
        absent if out.dx is None else out.dx,
        wide if out.dweight is None else out.dweight,
        wide.clone() if out.sums is None else out.sums.sum(0),
    )


@_depthwise_backward.register_fake
def _(dz, x, weight, stride, padding, in_scale, in_shift, in_act, need_dx, need_dw):  # type: ignore[no-untyped-def]
    wide = accumulation_dtype(x.dtype)
    with_affine = in_scale is not None
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return (
        dx if need_dx or with_affine else x.new_empty(0),
        x.new_empty(weight.shape if need_dw else 0, dtype=wide),
        x.new_empty((2, x.shape[1]) if with_affine else 0, dtype=wide),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, stride, padding, in_scale, in_shift, in_act, scale, shift, act, _, stats = inputs
    # A raw output is its own z; behind an epilogue z is computed again rather than kept.
    z = output[0] if scale is None and act == "none" else None
    ctx.save_for_backward(x, weight, in_scale, in_shift, scale, shift, z, output[2] if stats else None)
    ctx.attributes = (stride, padding, in_act, act)


def _backward(ctx, grad_y, grad_pooled, grad_stats):  # type: ignore[no-untyped-def]
    x, weight, in_scale, in_shift, scale, shift, z, moments = ctx.saved_tensors
    stride, padding, in_act, act = ctx.attributes
    if z is None:
        z = _depthwise(
            x, weight, stride, padding, in_scale, in_shift, in_act, None, None, "none", False, False
        )[0]
    grads = epilogue_backward(grad_y, grad_pooled, grad_stats, z, moments, maybe_affine(scale, shift), act)
    need_dx, need_dw = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    dx, dweight, sums = _depthwise_backward(
        grads.dz, x, weight, stride, padding, in_scale, in_shift, in_act, need_dx, need_dw
    )
    din_scale = din_shift = None
    if in_scale is not None:
        din_shift, din_scale = sums.unbind(0)
        dx = (dx * in_scale[:, None, None]).to(x.dtype)
    return (
        dx if need_dx else None,
        as_weight(dweight.to(weight.dtype), weight) if need_dw else None,
        *(None, None),
        *(din_scale, din_shift, None),
        *(grads.dscale, grads.dshift, None),
        *(None, None),
    )


differentiable(_depthwise, _backward, _setup_context, saved={0: 0, 1: 1, 4: 2, 5: 3, 7: 4, 8: 5})
