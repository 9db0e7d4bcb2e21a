"""A convolution, its BatchNorm and its activation as a sequence of kernels: stem and head of a network.

Nothing here knows autograd or modules. A 1x1 convolution is the ``pointwise`` primitive; any other is PyTorch's own,
between the passes that training needs. Backward: with ``g = dy * act'(n)`` the two sums of the BatchNorm come from one
pass over ``dy`` and ``z``, ``dz`` from another, and the convolution's gradients from ``dz``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..records import PointwiseIncoming, Source
from ..types import BatchNormStats, Running
from .mbconv_types import BatchNorm


class Layer(NamedTuple):
    """Everything fixed in a convolution layer."""

    stride: Sequence[int]  # of the height, of the width
    padding: Sequence[int]
    act: str

    def is_pointwise(self, weight: Tensor) -> bool:
        return (*weight.shape[2:], *self.stride, *self.padding) == (1, 1, 1, 1, 0, 0)


class LayerGrads(NamedTuple):
    """Gradients; ``dx`` and ``weight`` are ``None`` where they were not asked for."""

    dx: Tensor | None
    weight: Tensor | None
    bn: Tensor  # [2, C]: bias, weight


def dense_nhwc(z: Tensor) -> Tensor:
    """``z`` in channels_last memory with exactly the strides that a fake kernel predicts."""
    _, channels, height, width = z.shape
    if z.stride() == (channels * height * width, 1, width * channels, channels):
        return z
    return torch.empty(z.shape, dtype=z.dtype, device=z.device, memory_format=torch.channels_last).copy_(z)


def _convolve(x: Tensor, weight: Tensor, layer: Layer, stats: bool) -> tuple[Tensor, Tensor | None]:
    """The raw output and, with ``stats``, its partial statistics."""
    run = dispatch.chooser(x.device, x.dtype)
    if layer.is_pointwise(weight):
        z, _, partials = run("pointwise", stats=stats)(x, weight.flatten(1), stats=stats)
        return z, partials
    x, weight = _unambiguous(x, weight)
    z = dense_nhwc(F.conv2d(x, weight, None, layer.stride, layer.padding))
    return z, run("channel_stats")(z) if stats else None


def _unambiguous(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's convolution (torch 2.14, oneDNN) reads beside one-channel images in channels_last where the kernel has one row."""
    if weight.shape[1:3] != (1, 1):
        return x, weight
    return x.flatten().view(x.shape), weight.flatten().view(weight.shape)


def inference(x: Tensor, weight: Tensor, bn: BatchNorm, layer: Layer) -> Tensor:
    """The layer with running statistics."""
    run = dispatch.chooser(x.device, x.dtype)
    if layer.is_pointwise(weight):
        return run("pointwise", stats=False)(x, weight.flatten(1), affine=bn.running, act=layer.act).y
    z, _ = _convolve(x, weight, layer, stats=False)
    return run("affine_residual")(z, bn.running, layer.act)


def training_forward(
    x: Tensor, weight: Tensor, bn: BatchNorm, layer: Layer, running: Running | None = None
) -> tuple[Tensor, Tensor, BatchNormStats]:
    """``y``, the raw output ``z`` and the statistics; ``running`` is moved in place."""
    run = dispatch.chooser(x.device, x.dtype)
    z, partials = _convolve(x, weight, layer, stats=bn.training)
    if bn.training:
        stats = run("batch_norm_finalize")(
            partials, bn.weight, bn.bias, bn.eps, running, z.numel() // z.shape[1]
        )
    else:
        stats = run("batch_norm_fold")(bn.weight, bn.bias, bn.mean, bn.var, bn.eps)
    return run("affine_residual")(z, stats.affine, layer.act), z, stats


def training_backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor | None,
    stats: BatchNormStats,
    weight: Tensor,
    training: bool,
    layer: Layer,
    need_dx: bool,
    need_dw: bool,
) -> LayerGrads:
    """Every gradient of the layer; where ``z`` was not kept it is computed again, by the forward's own call."""
    run = dispatch.chooser(x.device, x.dtype)
    if z is None:
        z, _ = _convolve(x, weight, layer, stats=training)
    n, _, height, width = z.shape
    affine = stats.affine
    sums = run("batch_norm_reduce")(dy, z, stats.norm, affine=affine, act=layer.act)
    bn = run("batch_norm_backward_finalize")(sums, n * height * width, stats, training)
    if not need_dx and not need_dw:
        return LayerGrads(None, None, bn.params)
    dz = run("batch_norm_act_grad")(dy, z, bn.grad, affine=affine, act=layer.act)
    if layer.is_pointwise(weight):
        dx, dweight, _ = run("pointwise_backward")(
            PointwiseIncoming(dz), Source(x), weight.flatten(1), need_dx=need_dx, need_dw=need_dw
        )
        return LayerGrads(dx, None if dweight is None else dweight.view(weight.shape), bn.params)
    x, weight = _unambiguous(x, weight)
    _, cin, rows, columns = weight.shape
    if not weight.is_contiguous() and weight.stride() != (cin * rows * columns, 1, cin * columns, cin):
        # Beside channels_last images PyTorch takes no weight in another order, nor one whose order is ambiguous.
        weight = weight.clone(memory_format=torch.contiguous_format)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        *(dz, x, weight, None, layer.stride, layer.padding, (1, 1), False, (0, 0), 1),
        (need_dx, need_dw, False),
    )
    return LayerGrads(dense_nhwc(dx) if need_dx else None, dweight, bn.params)
