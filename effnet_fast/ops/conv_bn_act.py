"""A convolution with its BatchNorm and activation as one autograd op, for stem and head of a network.

PyTorch's own modules keep the convolution's output, the BatchNorm's output and the activation for the backward;
here it is ``x`` and the raw output ``z``, or ``x`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import BatchNormStats, Running, accumulation_dtype, move_running
from . import checks
from .batch_norm import check_variances
from .conv_autograd import as_weight
from .conv_bn_act_kernels import Layer, inference, training_backward, training_forward
from .declare import differentiable, kernel_op
from .mbconv_types import BatchNorm


class ConvBNActOut(NamedTuple):
    """``y`` and, after a training forward, the statistics the BatchNorm used ([5, C], see BatchNormStats)."""

    y: Tensor
    stats: Tensor | None


def conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    act: str = "silu",
    recompute: bool = False,
    inference: bool | None = None,
) -> ConvBNActOut:
    """``y = act(BN(conv(x)))``, what ``nn.Conv2d`` without bias, ``nn.BatchNorm2d`` and an activation compute.

    Args:
        x: [N, Cin, H, W]; float32, float16, bfloat16 (or float64 on the reference backend). Computed in
            channels_last memory; other layouts are copied first.
        weight: [C, Cin, kh, kw], in the dtype of ``x``. A 1x1 convolution is the package's own, others PyTorch's.
        bn: see :class:`BatchNorm`; vectors in float32 (float64).
        stride, padding: as :func:`torch.nn.functional.conv2d` takes them; zeros are padded.
        act: silu, relu, relu6, hardswish, none, ...
        recompute: keep ``x`` alone for the backward, which convolves again.
        inference: use the running statistics and keep nothing for a backward. By default, when no gradient is
            needed and the BatchNorm is not in training mode.

    Returns:
        ``y`` [N, C, Ho, Wo] in x's dtype, channels_last; and the statistics used. Updating running statistics is
        the caller's.

    Raises:
        EffnetFastError: an argument of the wrong kind, shape, dtype or device.
        BackendError: no backend can run it.
    """
    op = "ops.conv_bn_act"
    checks.check_image(op, "x", x)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        raise checks.fail(op, "weight", "[C, Cin, kh, kw]", checks.describe(weight))
    checks.check_tensor(op, "weight", weight, (weight.shape[0], x.shape[1], *weight.shape[2:]), x)
    for part in ("weight", "bias", "mean", "var"):
        t = getattr(bn, part)
        if t is not None:
            checks.check_tensor(op, f"bn.{part}", t, weight.shape[:1], x, dtype=False)
        elif part in ("mean", "var") and not bn.training:
            raise checks.fail(op, f"bn.{part}", "a tensor unless training", None)
    checks.check_activation(op, "act", act)
    layer = Layer(_pair(op, "stride", stride, 1), _pair(op, "padding", padding, 0), act)
    if min(_output_shape(x, weight, layer)) < 1 <= min(x.shape):
        raise checks.fail(op, "x", f"an image large enough for {tuple(weight.shape[2:])}", checks.describe(x))
    if inference is None:
        wants_grad = any(t is not None and t.requires_grad for t in (x, weight, bn.weight, bn.bias))
        inference = not bn.training and not (torch.is_grad_enabled() and wants_grad)
    return run_conv_bn_act(x, weight, bn, layer, recompute, inference)


def run_conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm,
    layer: Layer,
    recompute: bool,
    inference: bool,
    running: tuple[Running | None] | None = None,
) -> ConvBNActOut:
    """:func:`conv_bn_act` without the checks; after a training forward ``running`` (of a layer of modules) has moved.

    Raises:
        UnsupportedBlockError: as :func:`check_variances`, with ``running``; nothing has moved.
    """
    vectors, fixed = bn[:4], (list(layer.stride), list(layer.padding), layer.act)
    if inference:
        return ConvBNActOut(_inference(x, weight, *vectors, bn.eps, *fixed), None)
    args = (x, weight, *vectors, bn.eps, bn.training, *fixed, recompute)

    def check(out: tuple[Tensor, ...]) -> None:
        check_variances(out[2])

    (old,) = running or (None,)
    modules = running is not None and bn.training
    (y, _, stats), moved = _training.moving((old,), args, check if modules else None)
    if old is not None and not moved:
        move_running(old, BatchNormStats(stats), y.numel() // y.shape[1])
    return ConvBNActOut(y, stats)


def _pair(op: str, argument: str, value: int | Sequence[int], least: int) -> tuple[int, ...]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise checks.fail(op, argument, f"an int >= {least} or two of them", value)
    return pair


def _output_shape(x: Tensor, weight: Tensor, layer: Layer) -> tuple[int, int, int, int]:
    height, width = (
        (size + 2 * pad - kernel) // stride + 1
        for size, pad, kernel, stride in zip(
            x.shape[2:], layer.padding, weight.shape[2:], layer.stride, strict=True
        )
    )
    return x.shape[0], weight.shape[0], height, width


def _image(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    shape = _output_shape(x, weight, layer)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@kernel_op("conv_bn_act_inference", repeated=True)
def _inference(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    bn = BatchNorm(bn_weight, bn_bias, mean, var, eps, False)
    return inference(checks.channels_last(x), weight, bn, Layer(stride, padding, act))


@_inference.register_fake
def _(x, weight, bn_weight, bn_bias, mean, var, eps, stride, padding, act):  # type: ignore[no-untyped-def]
    return _image(x, weight, Layer(stride, padding, act))


@kernel_op("conv_bn_act_training", repeated=True)
def _training(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    training: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    recompute: bool,
    running: tuple[Running | None] = (None,),
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, ``z`` (empty with ``recompute``), the statistics."""
    bn = BatchNorm(bn_weight, bn_bias, mean, var, eps, training)
    y, z, stats = training_forward(checks.channels_last(x), weight, bn, Layer(stride, padding, act), *running)
    return y, x.new_empty(0) if recompute else z, stats.vectors


@_training.register_fake
def _(x, weight, bn_weight, bn_bias, mean, var, eps, training, stride, padding, act, recompute):  # type: ignore[no-untyped-def]
    layer = Layer(stride, padding, act)
    stats = x.new_empty((5, weight.shape[0]), dtype=accumulation_dtype(x.dtype))
    return _image(x, weight, layer), x.new_empty(0) if recompute else _image(x, weight, layer), stats


@kernel_op("conv_bn_act_backward", repeated=True)
def _backward_op(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    stats: Tensor,
    weight: Tensor,
    training: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    recompute: bool,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = training_backward(
        *(checks.channels_last(dy), checks.channels_last(x), None if recompute else z),
        *(BatchNormStats(stats), weight, training, Layer(stride, padding, act), need_dx, need_dw),
    )
    wide = accumulation_dtype(x.dtype)
    dx = x.new_empty(0) if grads.dx is None else grads.dx
    dweight = x.new_empty(0, dtype=wide) if grads.weight is None else grads.weight.to(wide).contiguous()
    return dx, dweight, grads.bn


@_backward_op.register_fake
def _(dy, x, z, stats, weight, training, stride, padding, act, recompute, need_dx, need_dw):  # type: ignore[no-untyped-def]
    wide = accumulation_dtype(x.dtype)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return (
        dx if need_dx else x.new_empty(0),
        x.new_empty(weight.shape if need_dw else 0, dtype=wide),
        x.new_empty((2, weight.shape[0]), dtype=wide),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bn_weight, bn_bias, _, _, _, *ctx.fixed = inputs[:12]
    ctx.save_for_backward(x, output[1], output[2], weight)
    ctx.dtypes = [weight.dtype, *(None if t is None else t.dtype for t in (bn_weight, bn_bias))]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, *_):  # type: ignore[no-untyped-def]
    if dy is None:
        return (None,) * len(ctx.needs_input_grad)
    # Read once: under checkpointing a second reading is an error.
    wanted, saved = ctx.needs_input_grad, ctx.saved_tensors
    dx, dweight, bn = _backward_op(dy, *saved, *ctx.fixed, wanted[0], wanted[1])
    dbias, dscale = bn.unbind(0)
    grads = [
        gradient.to(dtype) if want and dtype is not None else None
        for gradient, dtype, want in zip((dweight, dscale, dbias), ctx.dtypes, wanted[1:4], strict=True)
    ]
    return (
        dx if wanted[0] else None,
        as_weight(grads[0], saved[3]),
        *grads[1:],
        *(None,) * (len(wanted) - 4),
    )


differentiable(_training, _backward, _setup_context, saved={0: 0, 1: 3})
