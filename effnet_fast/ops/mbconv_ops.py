"""The block's three ops: inference, training, backward of training.

Their schemas are flat lists of tensors, in the order of :data:`.mbconv_types.TENSORS`, because that is what the dispatcher
and autograd speak. Training keeps ``x, e, d, p`` and a few vectors and recomputes the rest in its backward.
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
from .mbconv_backward import training_backward
from .mbconv_kernels import inference, training_forward
from .mbconv_types import (
    DEPTHWISE,
    EXPAND,
    PROJECT,
    SE,
    TENSORS,
    BlockRunning,
    Needs,
    Saved,
    Settings,
    Weights,
)

Tensors = tuple[Tensor | None, ...]

#: What the backward gets of :data:`TENSORS`, by place: no vector of a BatchNorm.
_LEARNT = (EXPAND, DEPTHWISE, PROJECT, *range(SE, len(TENSORS)))
#: What the forward hands the backward besides ``x`` and those.
_KEPT = ("e", "d", "p", "pooled", "gate", "expand_stats", "depthwise_stats", "project_stats")


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


@kernel_op("mbconv_inference", bundles={"tensors": TENSORS})
def mbconv_inference(
    x: Tensor,
    tensors: Tensors,
    row_scale: Tensor | None,
    eps: Sequence[float],
    stride: int,
    padding: Sequence[int],
    acts: str,
    residual: bool,
) -> Tensor:
    convs = _convolutions(*(tensors[at] for at in (EXPAND, DEPTHWISE, PROJECT)))  # type: ignore[arg-type]
    weights = Weights.of(_with_convolutions(tensors, convs), eps, (False, False, False))
    return inference(checks.channels_last(x), weights, _settings(stride, padding, acts, residual), row_scale)


def _with_convolutions(tensors: Tensors, convs: Sequence[Tensor | None]) -> list[Tensor | None]:
    changed = list(tensors)
    changed[EXPAND], changed[DEPTHWISE], changed[PROJECT] = convs
    return changed


def _image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@mbconv_inference.register_fake
def _(x, tensors, row_scale, eps, stride, padding, *_):  # type: ignore[no-untyped-def]
    size = checks.output_size("ops.mbconv", x, tensors[DEPTHWISE].shape[-1], stride, tuple(padding))
    return _image(x, tensors[PROJECT].shape[0], *size)


@kernel_op("mbconv_training", repeated=True, bundles={"tensors": TENSORS})
def mbconv_training(
    x: Tensor,
    tensors: Tensors,
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
    convs, copies = rounded(_convolutions(*(tensors[at] for at in (EXPAND, DEPTHWISE, PROJECT))), x)  # type: ignore[arg-type]
    weights = Weights.of(_with_convolutions(tensors, convs), eps, training, groups)
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
def _(x, tensors, row_scale, eps, training, stride, padding, acts, residual, recompute=False, groups=",,"):  # type: ignore[no-untyped-def]
    convs = expand, depthwise, project = [tensors[at] for at in (EXPAND, DEPTHWISE, PROJECT)]
    channels, out_channels = depthwise.shape[0], project.shape[0]
    size = checks.output_size("ops.mbconv", x, depthwise.shape[-1], stride, tuple(padding))
    wide = accumulation_dtype(x.dtype)
    keeps_e = expand is not None and not recompute
    pooled_shape = 0 if tensors[SE] is None else (x.shape[0], channels)
    # Synchronised statistics bring the joint count along, as a sixth row.
    rows = [6 if name and on else 5 for name, on in zip(groups.split(","), training, strict=True)]
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
        x.new_empty(room_for(convs, x)),
    )


@kernel_op(
    "mbconv_backward", repeated=True, bundles={"kept": _KEPT, "learnt": tuple(TENSORS[at] for at in _LEARNT)}
)
def mbconv_backward(
    dy: Tensor,
    x: Tensor,
    kept: Tensors,
    learnt: Tensors,
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
    expand, _, _, w1, _, _, _ = learnt
    tensors: list[Tensor | None] = [None] * len(TENSORS)
    for at, t in zip(_LEARNT, learnt, strict=True):
        tensors[at] = t
    convs = with_copies(_convolutions(*learnt[:3]), x, copies)  # type: ignore[arg-type]
    weights = Weights.of(_with_convolutions(tuple(tensors), convs), (0.0,) * 3, training, groups)
    e, d, p, pooled, gate, *stats = kept
    saved = Saved(
        None if expand is None or recompute_expand else e,
        *(d, p),  # type: ignore[arg-type]
        *((None, None) if w1 is None else (pooled, gate)),
        *(None if i == 0 and expand is None else BatchNormStats(s) for i, s in enumerate(stats)),  # type: ignore[arg-type]
    )
    grads = training_backward(
        *(checks.channels_last(dy), checks.channels_last(x), saved, weights),
        *(_settings(stride, padding, acts, residual, recompute_expand), row_scale, Needs(*needs)),
        *(learnt[:3], norm_dtype),  # type: ignore[arg-type]
    )
    return tuple(x.new_empty(0) if t is None else t for t in grads)  # type: ignore[return-value]


@mbconv_backward.register_fake
def _(dy, x, kept, learnt, row_scale, copies, norm_dtype, training, needs, *_):  # type: ignore[no-untyped-def]
    expand, depthwise, project, *excite = learnt

    def gradient(weight, needed):  # type: ignore[no-untyped-def]
        return x.new_empty(weight.shape, dtype=weight.dtype) if needed else x.new_empty(0)

    def like(t, dims):  # type: ignore[no-untyped-def]
        return x.new_empty(0) if t is None else t.new_empty(t.shape[:dims])

    def norm(weight):  # type: ignore[no-untyped-def]
        return x.new_empty(0 if weight is None else (2, weight.shape[0]), dtype=norm_dtype)

    return (
        _image(x, *x.shape[1:]) if needs[0] else x.new_empty(0),
        *(gradient(expand, needs[1]), x.new_empty(0) if expand is None else norm(expand)),
        *(gradient(depthwise, needs[2]), norm(depthwise)),
        *(gradient(project, needs[3]), norm(project)),
        *(like(t, dims) for t, dims in zip(excite, (2, 1, 2, 1), strict=True)),
    )


#: The forward's inputs are x, the tensors, and from here on row_scale, eps and the scalars.
_ROW_SCALE = 1 + len(TENSORS)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, tensors, row_scale = inputs[0], inputs[1:_ROW_SCALE], inputs[_ROW_SCALE]
    _, training, *scalars = inputs[_ROW_SCALE + 1 : mbconv_training.arity]
    ctx.save_for_backward(x, *output[1:9], *(tensors[at] for at in _LEARNT), row_scale, output[9])
    ctx.scalars = (training, scalars)
    ctx.dtypes = [None if t is None else t.dtype for t in tensors]
    norms = {
        t.dtype for at in (EXPAND, DEPTHWISE, PROJECT) for t in tensors[at + 1 : at + 3] if t is not None
    }
    ctx.norm_dtype = norms.pop() if len(norms) == 1 else accumulation_dtype(x.dtype)
    ctx.mark_non_differentiable(*output[1:])
    # Otherwise autograd would fill zeros of the size of e, d and p for the backward to ignore.
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, *_):  # type: ignore[no-untyped-def]
    wanted = ctx.needs_input_grad
    if dy is None:
        return (None,) * len(wanted)
    training, scalars = ctx.scalars
    expands = ctx.dtypes[EXPAND] is not None
    needs = [wanted[0], expands and wanted[1 + EXPAND], wanted[1 + DEPTHWISE], wanted[1 + PROJECT]]
    saved = ctx.saved_tensors
    learnt = saved[9 : 9 + len(_LEARNT)]
    dx, *rest = mbconv_backward(dy, *saved, ctx.norm_dtype, training, needs, *scalars)
    # Back to the flat order; statistics have no gradient.
    flat: list[Tensor | None] = []
    for conv, bn in (rest[0:2], rest[2:4], rest[4:6]):
        dbias, dweight = bn.unbind(0) if bn.numel() else (None, None)
        flat += [conv, dweight, dbias, None, None]
    flat += rest[6:10]
    grads = [
        _of_dtype(gradient, dtype) if want else None
        for gradient, dtype, want in zip(flat, ctx.dtypes, wanted[1:_ROW_SCALE], strict=True)
    ]
    for at, weight in zip(_LEARNT, learnt, strict=True):
        grads[at] = as_weight(grads[at], weight)
    return (dx if wanted[0] else None, *grads, *(None,) * (len(wanted) - _ROW_SCALE))


def _of_dtype(gradient: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    if gradient is None or dtype is None:
        return None
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


#: x; what is learnt; stochastic depth's factors.
_SAVED = {0: 0, **{1 + at: 9 + i for i, at in enumerate(_LEARNT)}, _ROW_SCALE: 9 + len(_LEARNT)}
differentiable(mbconv_training, _backward, _setup_context, _SAVED)
