"""The MBConv block as a sequence of kernels: inference, training forward, training backward.

Nothing here knows autograd or modules: tensors in, tensors out, each step on the backend that
:mod:`effnet_fast.dispatch` picks. The backward's derivation is section 8 of docs/design.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..types import BatchNormParamGrad, BatchNormStats, Padding, Running, RunningNorm, move_running
from .synchronized import JOINT_COUNT, joint_backward, joint_statistics

#: Running statistics of the expansion's, the depthwise and the projection's BatchNorm; ``None`` stays as it is.
BlockRunning = tuple[Running | None, Running | None, Running | None]


class BatchNorm(NamedTuple):
    """A BatchNorm's vectors; in the accumulation dtype, but for inference of any floating dtype.

    ``mean`` and ``var`` may be ``None`` when ``training``.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    training: bool
    #: Name of the process group whose batches share the statistics; empty: only this process's batch.
    group: str = ""

    @property
    def running(self) -> RunningNorm:
        """What kernels take of one that normalizes with its running statistics."""
        assert self.mean is not None and self.var is not None
        return RunningNorm(self.weight, self.bias, self.mean, self.var, self.eps)


class Weights(NamedTuple):
    """Everything learnt in a block. No expansion: ``expand`` is ``None``. No squeeze-and-excite: ``w1`` is ``None``."""

    expand: Tensor | None  # [C, Cin]; modules hand the op [C, Cin, 1, 1], here and for the other matrices
    expand_bn: BatchNorm | None
    depthwise: Tensor  # [C, 1, k, k]
    depthwise_bn: BatchNorm
    project: Tensor  # [Cout, C]
    project_bn: BatchNorm
    w1: Tensor | None  # [R, C]
    b1: Tensor | None
    w2: Tensor | None  # [C, R]
    b2: Tensor | None


class Settings(NamedTuple):
    """Everything fixed in a block."""

    stride: int
    padding: Padding
    expand_act: str
    depthwise_act: str
    se_act: str
    gate_act: str
    residual: bool
    #: Keep ``x`` instead of the expansion's output for the backward, which expands again.
    recompute_expand: bool = False


class Saved(NamedTuple):
    """What a training forward keeps for its backward besides ``x`` and the weights."""

    e: Tensor | None  # raw expand output; the backward computes it where it is missing
    d: Tensor  # raw depthwise output
    p: Tensor  # raw project output
    pooled: Tensor | None
    gate: Tensor | None
    expand_stats: BatchNormStats | None
    depthwise_stats: BatchNormStats
    project_stats: BatchNormStats


class Grads(NamedTuple):
    """Gradients, each in the dtype of what it is of; ``None`` where there is nothing or nothing was asked."""

    dx: Tensor | None
    expand: Tensor | None
    expand_bn: Tensor | None  # [2, C]: bias, weight
    depthwise: Tensor | None
    depthwise_bn: Tensor
    project: Tensor | None
    project_bn: Tensor
    w1: Tensor | None
    b1: Tensor | None
    w2: Tensor | None
    b2: Tensor | None


class Needs(NamedTuple):
    """Which of the large gradients are wanted."""

    x: bool
    expand: bool
    depthwise: bool
    project: bool


def _runner(x: Tensor, weights: Weights, settings: Settings) -> Callable[[str], Callable[..., Any]]:
    # No image, which only synchronised BatchNorms bring here: the other backends have nothing to launch.
    forced = dispatch.forced_backends() if x.shape[0] else ("reference",)
    choose = dispatch.chooser(x.device, x.dtype, forced)
    stencil = {"kernel_size": weights.depthwise.shape[-1], "stride": settings.stride}
    excite = {} if weights.w1 is None else {"hidden": weights.w1.shape[0]}

    def run(op: str, **facts: Any) -> Callable[..., Any]:
        if op.startswith("depthwise"):
            facts |= stencil
        elif op.startswith("squeeze_excite"):
            facts |= excite
        return choose(op, **facts)

    return run


def inference(x: Tensor, weights: Weights, settings: Settings, row_scale: Tensor | None) -> Tensor:
    """The block with running statistics: expand, depthwise (+ pool), squeeze-and-excite, project (+ gate, residual).

    Weights of 1x1 convolutions may have their modules' shapes, [Cout, Cin, 1, 1].
    """
    if row_scale is None and x.numel():
        whole = _whole_block(x, weights, settings)
        y = None if whole is None else whole(x, weights, settings)
        if y is not None:
            return y
    weights = as_matrices(weights)
    run = _runner(x, weights, settings)
    a1 = x
    if weights.expand is not None:
        assert weights.expand_bn is not None
        norm = weights.expand_bn.running
        a1 = run("pointwise", stats=False)(x, weights.expand, affine=norm, act=settings.expand_act).y
    a2, pooled, _ = run("depthwise", stats=False)(
        a1,
        weights.depthwise,
        settings.stride,
        settings.padding,
        affine=weights.depthwise_bn.running,
        act=settings.depthwise_act,
        pool=weights.w1 is not None,
    )
    return run("pointwise", stats=False)(
        a2,
        weights.project,
        gate=_gate(run, pooled, weights, settings),
        affine=weights.project_bn.running,
        row_scale=row_scale,
        residual=x if settings.residual else None,
    ).y


def as_matrices(weights: Weights) -> Weights:
    """1x1 convolutions as [Cout, Cin], every tensor contiguous."""

    def matrix(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.flatten(1).contiguous()

    def norm(bn: BatchNorm | None) -> Any:
        return None if bn is None else bn._replace(**{k: _contiguous(getattr(bn, k)) for k in bn._fields[:4]})

    return Weights(
        *(matrix(weights.expand), norm(weights.expand_bn)),
        *(weights.depthwise.contiguous(), norm(weights.depthwise_bn)),
        *(matrix(weights.project), norm(weights.project_bn)),  # type: ignore[arg-type]
        *(matrix(weights.w1), _contiguous(weights.b1), matrix(weights.w2), _contiguous(weights.b2)),
    )


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _whole_block(x: Tensor, weights: Weights, settings: Settings) -> Callable[..., Tensor | None] | None:
    """One call for everything, where the backend that would run the depthwise convolution has that.

    It answers ``None`` where this block has to run op by op.
    """
    forced, size = dispatch.forced_backends(), weights.depthwise.shape[-1]
    choice = dispatch.choose(
        "depthwise", x.device, x.dtype, forced, kernel_size=size, stride=settings.stride, stats=False
    )
    return dispatch.whole("mbconv_inference", choice)


def _gate(
    run: Callable[..., Any], pooled: Tensor | None, weights: Weights, settings: Settings
) -> Tensor | None:
    if weights.w1 is None:
        return None
    return run("squeeze_excite")(
        pooled, weights.w1, weights.b1, weights.w2, weights.b2, settings.se_act, settings.gate_act
    )


def _statistics(
    run: Callable[..., Any], bn: BatchNorm, partials: Tensor | None, running: Running | None, z: Tensor
) -> BatchNormStats:
    if bn.training and bn.group:
        finalize = run("batch_norm_finalize")
        joint = joint_statistics(finalize, partials, bn.weight, bn.bias, bn.eps, bn.group)
        if running is not None:
            move_running(running, joint, joint.vectors[JOINT_COUNT])
        return joint
    if bn.training:
        count = z.shape[0] * z.shape[2] * z.shape[3]
        return run("batch_norm_finalize")(partials, bn.weight, bn.bias, bn.eps, running, count)
    return run("batch_norm_fold")(bn.weight, bn.bias, bn.mean, bn.var, bn.eps)


def _expand(run: Callable[..., Any], x: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """The raw expand output and its partial statistics; one call for forward and backward, so that bits agree."""
    assert weights.expand_bn is not None
    training = weights.expand_bn.training
    e, _, partials = run("pointwise", stats=training)(x, weights.expand, stats=training)
    return e, partials


def training_forward(
    x: Tensor,
    weights: Weights,
    settings: Settings,
    row_scale: Tensor | None,
    running: BlockRunning = (None, None, None),
) -> tuple[Tensor, Saved]:
    """The block with raw outputs kept; BatchNorm and activation are applied by the next kernel as it loads.

    ``running`` is moved in place.
    """
    run = _runner(x, weights, settings)
    e = expand_stats = None
    if weights.expand is not None:
        assert weights.expand_bn is not None
        e, partials = _expand(run, x, weights)
        expand_stats = _statistics(run, weights.expand_bn, partials, running[0], e)
    training = weights.depthwise_bn.training
    d, _, partials = run("depthwise", stats=training)(
        x if e is None else e,
        weights.depthwise,
        settings.stride,
        settings.padding,
        in_affine=None if expand_stats is None else expand_stats.affine,
        in_act="none" if expand_stats is None else settings.expand_act,
        stats=training,
    )
    depthwise_stats = _statistics(run, weights.depthwise_bn, partials, running[1], d)
    pooled = None
    if weights.w1 is not None:
        pooled = run("affine_pool")(d, depthwise_stats.affine, settings.depthwise_act)
    gate = _gate(run, pooled, weights, settings)
    training = weights.project_bn.training
    p, _, partials = run("pointwise", stats=training)(
        d,
        weights.project,
        in_affine=depthwise_stats.affine,
        in_act=settings.depthwise_act,
        gate=gate,
        stats=training,
    )
    project_stats = _statistics(run, weights.project_bn, partials, running[2], p)
    y = run("affine_residual")(p, project_stats.affine, "none", row_scale, x if settings.residual else None)
    if settings.recompute_expand:
        e = None
    return y, Saved(e, d, p, pooled, gate, expand_stats, depthwise_stats, project_stats)


def training_backward(
    dy: Tensor,
    x: Tensor,
    saved: Saved,
    weights: Weights,
    settings: Settings,
    row_scale: Tensor | None,
    needs: Needs,
    learnt: tuple[Tensor | None, Tensor, Tensor],
    norm_dtype: torch.dtype | None = None,
) -> Grads:
    """Every gradient of the block from ``dy`` and what :func:`training_forward` kept.

    Args:
        learnt: weights of expansion, depthwise convolution and projection as their modules have them, before any
            rounding; their gradients have these shapes and dtypes.
        norm_dtype: of the gradients of the BatchNorms' parameters, by default the accumulation dtype.
    """
    run = _runner(x, weights, settings)
    e, d, p, pooled, gate, stats1, stats2, stats3 = saved
    if e is None and weights.expand is not None:
        e, _ = _expand(run, x, weights)
    n, _, height, width = d.shape

    def finalize(sums: Tensor, count: int, stats: BatchNormStats, bn: BatchNorm) -> BatchNormParamGrad:
        formula = run("batch_norm_backward_finalize")
        if bn.training and bn.group:
            return joint_backward(formula, sums, count, stats, bn.group)
        return formula(sums, count, stats, bn.training, norm_dtype)

    sums = run("batch_norm_reduce")(dy, p, stats3.norm, row_scale=row_scale)
    bn3 = finalize(sums, n * height * width, stats3, weights.project_bn)
    project = run("pointwise_backward")(
        dy,
        d,
        weights.project,
        z=p,
        grad=bn3.grad,
        row_scale=row_scale,
        in_affine=stats2.affine,
        in_act=settings.depthwise_act,
        in_norm=stats2.norm,
        gate=gate,
        need_dw=needs.project,
        parts=True,
    )

    se = pool_grad = None
    if gate is not None:
        se = run("squeeze_excite_backward")(
            project.sums[0],
            *(pooled, weights.w1, weights.b1, weights.w2, weights.b2),
            *(settings.se_act, settings.gate_act, height * width),
        )
        pool_grad = se.dpooled
    middle, count = weights.depthwise_bn, n * height * width
    if middle.training and middle.group:
        bn2 = finalize(run("gate_batch_norm_sums")(project.sums, gate, pool_grad), count, stats2, middle)
    else:
        bn2 = run("gate_batch_norm_finalize")(
            project.sums, gate, pool_grad, count, stats2, middle.training, norm_dtype
        )

    residual_grad = dy if settings.residual else None
    stencil = run("depthwise_backward")(
        project.dx,
        x if e is None else e,
        weights.depthwise,
        settings.stride,
        settings.padding,
        z=d,
        affine=stats2.affine,
        act=settings.depthwise_act,
        gate=gate,
        pool_grad=pool_grad,
        grad=bn2.grad,
        in_affine=None if stats1 is None else stats1.affine,
        in_act="none" if stats1 is None else settings.expand_act,
        in_norm=None if stats1 is None else stats1.norm,
        residual_grad=residual_grad if stats1 is None else None,
        need_dx=needs.x,
        need_dw=needs.depthwise,
        parts=True,
    )

    dx, dexpand, bn1 = stencil.dx, None, None
    if stats1 is not None:
        assert weights.expand_bn is not None
        bn1 = finalize(stencil.sums, n * e.shape[2] * e.shape[3], stats1, weights.expand_bn)
        dx, dexpand, _ = run("pointwise_backward")(
            stencil.dx,
            x,
            weights.expand,
            z=e,
            grad=bn1.grad,
            residual_grad=residual_grad,
            need_dx=needs.x,
            need_dw=needs.expand,
            parts=True,
        )
    rows = (dexpand, stencil.dweight, project.dweight)
    dexpand, ddepthwise, dproject = run("merge_weight_grads")(rows, learnt)
    return Grads(
        dx,
        dexpand,
        None if bn1 is None else bn1.params,
        ddepthwise,
        bn2.params,
        dproject,
        bn3.params,
        *((None,) * 4 if se is None else se[1:]),
    )
