"""The block's three ops: inference, training, backward of training.

The schemas are flat lists of tensors because that is what the dispatcher speaks; :class:`Weights` and
:class:`Settings` are the form the rest of the package uses. Training keeps ``x, e, d, p`` and a few vectors and
recomputes the rest in its backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import BatchNormStats, accumulation_dtype
from . import checks
from .casting import room_for, rounded, with_copies
from .conv_autograd import as_weight
from .declare import differentiable, kernel_op
from .mbconv_kernels import (
    BatchNorm,
    BlockRunning,
    Needs,
    Saved,
    Settings,
    Weights,
    inference,
    training_backward,
    training_forward,
)

#: Flat order of the tensors: three convolutions, each [weight, bn.weight, bn.bias, bn.mean, bn.var], then
#: squeeze-and-excite [w1, b1, w2, b2].
CONVS = ("expand", "depthwise", "project")


def flatten(weights: Weights) -> list[Tensor | None]:
    flat: list[Tensor | None] = []
    for name in CONVS:
        bn = getattr(weights, f"{name}_bn")
        flat += [getattr(weights, name), *((None,) * 4 if bn is None else bn[:4])]
    return [*flat, weights.w1, weights.b1, weights.w2, weights.b2]


def _unflatten(
    flat: Sequence[Tensor | None], eps: Sequence[float], training: Sequence[bool], groups: str = ",,"
) -> Weights:
    parts: list[object] = []
    names = groups.split(",")
    for i in range(3):
        conv, *vectors = flat[5 * i : 5 * i + 5]
        parts += [conv, None if conv is None else BatchNorm(*vectors, eps[i], training[i], names[i])]
    w1, b1, w2, b2 = flat[15:19]
    w1, w2 = (None if w is None else w.flatten(1) for w in (w1, w2))
    return Weights(*parts, w1, b1, w2, b2)  # type: ignore[arg-type]


def _convolutions(expand: Tensor | None, depthwise: Tensor, project: Tensor) -> list[Tensor | None]:
    """The three weights as kernels read them: dense, those of 1x1 convolutions as matrices; as ``nn.Conv2d`` has them
    they come with four dimensions."""
    matrices = (None if t is None else t.flatten(1).contiguous() for t in (expand, project))
    first, last = matrices
    return [first, depthwise.contiguous(), last]


def _settings(
    stride: int, padding: Sequence[int], acts: str, residual: bool, recompute_expand: bool = False
) -> Settings:
    return Settings(stride, tuple(padding), *acts.split(","), residual, recompute_expand)  # type: ignore[arg-type]


@kernel_op("mbconv_inference")
def mbconv_inference(
    x: Tensor,
    expand: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    expand_mean: Tensor | None,
    expand_var: Tensor | None,
    depthwise: Tensor,
    depthwise_weight: Tensor | None,
    depthwise_bias: Tensor | None,
    depthwise_mean: Tensor | None,
    depthwise_var: Tensor | None,
    project: Tensor,
    project_weight: Tensor | None,
    project_bias: Tensor | None,
    project_mean: Tensor | None,
    project_var: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    row_scale: Tensor | None,
    eps: Sequence[float],
    stride: int,
    padding: Sequence[int],
    acts: str,
    residual: bool,
) -> Tensor:
    expand, depthwise, project = _convolutions(expand, depthwise, project)
    flat = (
        *(expand, expand_weight, expand_bias, expand_mean, expand_var),
        *(depthwise, depthwise_weight, depthwise_bias, depthwise_mean, depthwise_var),
        *(project, project_weight, project_bias, project_mean, project_var),
        *(w1, b1, w2, b2),
    )
    weights = _unflatten(flat, eps, (False, False, False))
    return inference(checks.channels_last(x), weights, _settings(stride, padding, acts, residual), row_scale)


def _image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@mbconv_inference.register_fake
def _(x, *args):  # type: ignore[no-untyped-def]
    depthwise, project, (stride, padding) = args[5], args[10], args[21:23]
    size = checks.output_size("ops.mbconv", x, depthwise.shape[-1], stride, tuple(padding))
    return _image(x, project.shape[0], *size)


@kernel_op("mbconv_training", repeated=True)
def mbconv_training(
    x: Tensor,
    expand: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    expand_mean: Tensor | None,
    expand_var: Tensor | None,
    depthwise: Tensor,
    depthwise_weight: Tensor | None,
    depthwise_bias: Tensor | None,
    depthwise_mean: Tensor | None,
    depthwise_var: Tensor | None,
    project: Tensor,
    project_weight: Tensor | None,
    project_bias: Tensor | None,
    project_mean: Tensor | None,
    project_var: Tensor | None,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    row_scale: Tensor | None,
    eps: Sequence[float],
    training: Sequence[bool],
    stride: int,
    padding: Sequence[int],
    acts: str,
    residual: bool,
    recompute_expand: bool = False,
    groups: str = ",,",
    running: BlockRunning = (None, None, None),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (expand, depthwise, project), copies = rounded(_convolutions(expand, depthwise, project), x)  # type: ignore[assignment]
    flat = (
        *(expand, expand_weight, expand_bias, expand_mean, expand_var),
        *(depthwise, depthwise_weight, depthwise_bias, depthwise_mean, depthwise_var),
        *(project, project_weight, project_bias, project_mean, project_var),
        *(w1, b1, w2, b2),
    )
    weights = _unflatten(flat, eps, training, groups)
    settings = _settings(stride, padding, acts, residual, recompute_expand)
    y, saved = training_forward(checks.channels_last(x), weights, settings, row_scale, running)

    def present(t: Tensor | None, dtype: torch.dtype) -> Tensor:
        return x.new_empty(0, dtype=dtype) if t is None else t

    wide = accumulation_dtype(x.dtype)
    stats = [None if s is None else s.vectors for s in saved[5:]]
    return (
        *(y, present(saved.e, x.dtype), saved.d, saved.p),
        *(present(saved.pooled, wide), present(saved.gate, wide)),
        *(present(stats[0], wide), present(stats[1], wide), present(stats[2], wide), copies),
    )


@mbconv_training.register_fake
def _(x, *args):  # type: ignore[no-untyped-def]
    expand, depthwise, project, w1 = args[0], args[5], args[10], args[15]
    stride, padding = args[22:24]
    channels, out_channels = depthwise.shape[0], project.shape[0]
    size = checks.output_size("ops.mbconv", x, depthwise.shape[-1], stride, tuple(padding))
    wide = accumulation_dtype(x.dtype)
    # Defaults are not always passed.
    keeps_e = expand is not None and not any(args[26:27])
    pooled_shape = 0 if w1 is None else (x.shape[0], channels)
    # Synchronised statistics bring the joint count along, as a sixth row.
    groups = args[27] if len(args) > 27 else ",,"
    rows = [6 if name and on else 5 for name, on in zip(groups.split(","), args[21], strict=True)]
    return (
        _image(x, out_channels, *size),
        _image(x, channels, *x.shape[2:]) if keeps_e else x.new_empty(0),
        _image(x, channels, *size),
        _image(x, out_channels, *size),
        x.new_empty(pooled_shape, dtype=wide),
        x.new_empty(pooled_shape, dtype=wide),
        x.new_empty(0 if expand is None else (rows[0], channels), dtype=wide),
        x.new_empty((rows[1], channels), dtype=wide),
        x.new_empty((rows[2], out_channels), dtype=wide),
        x.new_empty(room_for((expand, depthwise, project), x)),
    )


@kernel_op("mbconv_backward", repeated=True)
def mbconv_backward(
    dy: Tensor,
    x: Tensor,
    e: Tensor,
    d: Tensor,
    p: Tensor,
    pooled: Tensor,
    gate: Tensor,
    expand_stats: Tensor,
    depthwise_stats: Tensor,
    project_stats: Tensor,
    expand: Tensor | None,
    depthwise: Tensor,
    project: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    row_scale: Tensor | None,
    copies: Tensor,
    norm_dtype: torch.dtype,
    training: Sequence[bool],
    needs: Sequence[bool],
    stride: int,
    padding: Sequence[int],
    acts: str,
    residual: bool,
    recompute_expand: bool = False,
    groups: str = ",,",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    nothing = (None,) * 4
    convs = with_copies(_convolutions(expand, depthwise, project), x, copies)
    flat = (convs[0], *nothing, convs[1], *nothing, convs[2], *nothing, w1, b1, w2, b2)
    weights = _unflatten(flat, (0.0,) * 3, training, groups)
    saved = Saved(
        None if expand is None or recompute_expand else e,
        *(d, p),
        *((None, None) if w1 is None else (pooled, gate)),
        None if expand is None else BatchNormStats(expand_stats),
        *(BatchNormStats(depthwise_stats), BatchNormStats(project_stats)),
    )
    settings = _settings(stride, padding, acts, residual, recompute_expand)
    grads = training_backward(
        *(
            checks.channels_last(dy),
            checks.channels_last(x),
            saved,
            weights,
            settings,
            row_scale,
            Needs(*needs),
        ),
        *((expand, depthwise, project), norm_dtype),
    )
    return tuple(x.new_empty(0) if t is None else t for t in grads)  # type: ignore[return-value]


@mbconv_backward.register_fake
def _(
    dy,
    x,
    e,
    d,
    p,
    pooled,
    gate,
    s1,
    s2,
    s3,
    expand,
    depthwise,
    project,
    w1,
    b1,
    w2,
    b2,
    row_scale,
    copies,
    norm_dtype,
    training,
    needs,
    *_,
):  # type: ignore[no-untyped-def]
    c, cout = depthwise.shape[0], project.shape[0]

    def gradient(weight, needed):  # type: ignore[no-untyped-def]
        return x.new_empty(weight.shape, dtype=weight.dtype) if needed else x.new_empty(0)

    def like(t, dims):  # type: ignore[no-untyped-def]
        return x.new_empty(0) if t is None else t.new_empty(t.shape[:dims])

    def norm(channels):  # type: ignore[no-untyped-def]
        return x.new_empty((2, channels), dtype=norm_dtype)

    return (
        _image(x, *x.shape[1:]) if needs[0] else x.new_empty(0),
        *(gradient(expand, needs[1]), norm(c) if expand is not None else x.new_empty(0)),
        *(gradient(depthwise, needs[2]), norm(c)),
        *(gradient(project, needs[3]), norm(cout)),
        *(like(w1, 2), like(b1, 1), like(w2, 2), like(b2, 1)),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, flat, row_scale = inputs[0], inputs[1:20], inputs[20]
    _, training, *scalars = inputs[21:29]
    convs = (flat[0], flat[5], flat[10])
    ctx.save_for_backward(x, *output[1:9], *convs, *flat[15:19], row_scale, output[9])
    ctx.scalars = (training, scalars)
    ctx.dtypes = [None if t is None else t.dtype for t in flat]
    norms = {dtype for i in (0, 5, 10) for dtype in ctx.dtypes[i + 1 : i + 3] if dtype is not None}
    ctx.norm_dtype = norms.pop() if len(norms) == 1 else accumulation_dtype(x.dtype)
    ctx.mark_non_differentiable(*output[1:])
    # Otherwise autograd would fill zeros of the size of e, d and p for the backward to ignore.
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, *_):  # type: ignore[no-untyped-def]
    if dy is None:
        return (None,) * len(ctx.needs_input_grad)
    training, scalars = ctx.scalars
    wanted = ctx.needs_input_grad
    expands = ctx.dtypes[0] is not None
    needs = [wanted[0], expands and wanted[1], wanted[6], wanted[11]]
    saved = ctx.saved_tensors
    dx, *rest = mbconv_backward(dy, *saved, ctx.norm_dtype, training, needs, *scalars)
    expand, depthwise, project, w1, _, w2 = saved[9:15]
    # Back to the flat order: [conv, bn.weight, bn.bias, bn.mean, bn.var] for each convolution, then w1, b1, w2, b2.
    flat: list[Tensor | None] = []
    for conv, bn in (rest[0:2], rest[2:4], rest[4:6]):
        dbias, dweight = bn.unbind(0) if bn.numel() else (None, None)
        flat += [conv, dweight, dbias, None, None]
    flat += rest[6:10]
    grads = [
        None
        if gradient is None or dtype is None or not want
        else gradient
        if gradient.dtype == dtype
        else gradient.to(dtype)
        for gradient, dtype, want in zip(flat, ctx.dtypes, wanted[1:20], strict=True)
    ]
    for i, weight in ((0, expand), (5, depthwise), (10, project), (15, w1), (17, w2)):
        grads[i] = as_weight(grads[i], weight)
    return (dx if wanted[0] else None, *grads, *(None,) * (len(wanted) - 20))


#: x; the convolutions; squeeze-and-excite; stochastic depth's factors.
_SAVED = {0: 0, 1: 9, 6: 10, 11: 11, **{16 + i: 12 + i for i in range(4)}, 20: 16}
differentiable(mbconv_training, _backward, _setup_context, _SAVED)
