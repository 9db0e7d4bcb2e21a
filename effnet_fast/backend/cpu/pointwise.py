"""The 1x1 convolution and its backward: one native pass where that is faster, or PyTorch's GEMM between passes.

In training both work on a few images at a time, so that what a pass wrote is still in cache when the GEMM reads it,
and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...records import PointwiseIncoming, Source, conv_grad
from ...types import Affine, BatchNormGrad, ConvGrad, ConvOut, RunningNorm
from .entry_points import NUMBER, kernels, per_channel, scale_and_shift, wide

# Of the widest tensor, per group of images.
_GROUP_BYTES = 1 << 21


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
    """As :func:`effnet_fast.backend.reference.pointwise`; fp32 and bf16. In bf16 ``z`` is rounded before its epilogue too."""
    n, _, height, width = x.shape
    out_channels = weight.shape[0]
    finish = affine is not None or act != "none" or row_scale is not None or residual is not None or pool
    if not finish and (stats or in_affine is not None):
        if _is_fused(x, weight):
            scale, shift = in_affine or (None, None)
            y, moments = kernels().pointwise_forward(x, weight, scale, shift, NUMBER[in_act], gate, stats)
            return ConvOut(y, None, moments if stats else None)
        return _raw(x, weight, in_affine, in_act, gate, stats)
    if (
        gate is not None
        and in_affine is None
        and in_act == "none"
        and n == 1
        and out_channels < height * width
    ):
        # One image: scaling the weight's columns touches less memory than scaling the image.
        weight, gate = (weight * gate).to(weight.dtype), None
    a = _activation(x, in_affine, in_act, gate)
    y = torch.mm(_rows(a), weight.t()).view(n, height, width, out_channels).permute(0, 3, 1, 2)
    pooled = None
    if finish:
        scale, shift = scale_and_shift(affine)
        multiplier = per_channel(row_scale, out_channels)
        pooled = kernels().elementwise_(y, scale, shift, NUMBER[act], multiplier, residual, pool)
    return ConvOut(y, pooled if pool else None, kernels().channel_stats(y) if stats else None)


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
    """As :func:`effnet_fast.backend.reference.pointwise_backward`; fp32 and bf16.

    In bf16 ``dz`` and the product of a group of images are rounded, as PyTorch rounds them.
    """
    if source.affine is not None:
        residual_grad = None
        if source.norm is None:
            raise ValueError("pointwise_backward: source.norm: expected vectors, for the sums, got None")
    incoming = incoming.used
    if source.x.dtype != torch.float32 or weight.dtype != torch.float32:
        grads = _between_products(incoming, source, weight, residual_grad, need_dx, need_dw)
    else:
        if incoming.row_scale is not None and incoming.row_scale.dtype != torch.float32:
            incoming = incoming._replace(row_scale=wide(incoming.row_scale))
        dx, dweight, sums = kernels().pointwise_backward(
            incoming.tensors, source.tensors, NUMBER[source.act], weight, residual_grad, need_dx, need_dw
        )
        grads = conv_grad(source, dx, dweight, sums, need_dx, need_dw)
    return grads._replace(dweight=grads.dweight.view(1, 1, -1)) if parts and need_dw else grads  # type: ignore[union-attr]


def _between_products(
    incoming: PointwiseIncoming,
    source: Source,
    weight: Tensor,
    residual_grad: Tensor | None,
    need_dx: bool,
    need_dw: bool,
) -> ConvGrad:
    """PyTorch's products between passes, a group of images at a time."""
    dy, z, grad, row_scale = incoming
    x, in_affine, in_act, gate, in_norm = source
    n, channels = x.shape[:2]
    x, dy = _nhwc(x), _nhwc(dy)
    z, residual_grad = (None if t is None else _nhwc(t) for t in (z, residual_grad))
    need_dx = need_dx or in_affine is not None
    dx = _new_image(x, channels) if need_dx else None
    dweight = torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if need_dw else None
    sums = None
    if in_affine is not None:
        sums = torch.empty(5, n, channels, dtype=torch.float32, device=x.device)
    for images in _groups(x, max(channels, weight.shape[0])):
        here = x[images]
        row_gate = None if gate is None else gate[images]
        dz = _input_grad(dy[images], z, grad, row_scale, images)
        if dx is not None:
            _multiply(dz, weight, dx[images])
            if sums is None and residual_grad is not None:
                nothing = (None, None, NUMBER["none"], None)
                kernels().elementwise_(dx[images], *nothing, residual_grad[images], False)
        if sums is not None:
            assert dx is not None and in_affine is not None and in_norm is not None
            sums[:, images], a = kernels().gate_and_norm_sums(
                dx[images], here, *in_affine, NUMBER[in_act], *in_norm, row_gate, need_dw
            )
        elif need_dw:
            a = _activation(here, None, in_act, row_gate)
        if dweight is not None:
            _accumulate(dweight, _rows(dz).t(), _rows(a))
    return ConvGrad(dx, dweight, sums)


def _is_fused(x: Tensor, weight: Tensor) -> bool:
    """Whether the native product serves: fp32, and columns enough to beat PyTorch's (16: 0.8x, from 24 on 1.05x up)."""
    return x.dtype == torch.float32 == weight.dtype and min(x.shape[0], weight.shape[0] - 16) > 0


def _raw(
    x: Tensor, weight: Tensor, affine: Affine | None, act: str, gate: Tensor | None, stats: bool
) -> ConvOut:
    x = _nhwc(x)
    y = _new_image(x, weight.shape[0])
    moments = []
    for images in _groups(x, max(weight.shape)):
        _multiply(
            _activation(x[images], affine, act, None if gate is None else gate[images]), weight.t(), y[images]
        )
        if stats:
            moments.append(kernels().channel_stats(y[images]))
    return ConvOut(y, None, torch.cat(moments) if stats else None)


def _groups(x: Tensor, channels: int) -> Iterator[slice]:
    """Slices of the batch, at least one; the cut depends on the shape alone."""
    n, _, height, width = x.shape
    images = max(1, _GROUP_BYTES // max(1, height * width * channels * x.element_size()))
    for first in range(0, max(n, 1), images):
        yield slice(first, min(first + images, n))


def _activation(x: Tensor, affine: Affine | None, act: str, gate: Tensor | None) -> Tensor:
    """``gate * act(affine(x))`` in x's dtype; x itself where nothing happens."""
    if affine is None and act == "none" and gate is None:
        return x
    scale, shift = affine or (None, None)
    return kernels().elementwise(x, scale, shift, NUMBER[act], gate, None, False, True)[0]


def _input_grad(
    dy: Tensor, z: Tensor | None, grad: BatchNormGrad | None, row_scale: Tensor | None, images: slice
) -> Tensor:
    scale = None if row_scale is None else wide(row_scale[images])
    if z is not None and grad is not None:
        return kernels().batch_norm_input_grad(dy, z[images], *grad, scale, None, None, NUMBER["none"])
    return _activation(dy, None, "none", per_channel(scale, dy.shape[1]))


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last memory -> [N*H*W, C], the same memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _new_image(like: Tensor, channels: int) -> Tensor:
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _multiply(x: Tensor, matrix: Tensor, y: Tensor) -> None:
    """``y = x . matrix`` over pixels, into y's memory, which is channels_last."""
    torch.mm(_rows(x), matrix, out=y.permute(0, 2, 3, 1).view(-1, y.shape[1]))


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a . b``, total in fp32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b))
