"""The MBConv block as a sequence of kernels: inference and training forward; the backward is :mod:`.mbconv_backward`.

Nothing here knows autograd or modules: tensors in, tensors out, each step on the backend that
:mod:`effnet_fast.dispatch` picks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import dispatch
from ..types import BatchNormStats, Running, move_running
from .mbconv_types import BatchNorm, BlockRunning, Saved, Settings, Weights
from .synchronized import JOINT_COUNT, joint_statistics

Run = Callable[..., Callable[..., Any]]


def runner(x: Tensor, weights: Weights, settings: Settings) -> Run:
    """``run(op, **facts)``: the functions of a block's backends."""
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
    weights = weights.as_matrices
    run = runner(x, weights, settings)
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


def _whole_block(x: Tensor, weights: Weights, settings: Settings) -> Callable[..., Tensor | None] | None:
    """One call for everything, where the backend that would run the depthwise convolution has that.

    It answers ``None`` where this block has to run op by op.
    """
    forced, size = dispatch.forced_backends(), weights.depthwise.shape[-1]
    choice = dispatch.choose(
        "depthwise", x.device, x.dtype, forced, kernel_size=size, stride=settings.stride, stats=False
    )
    return dispatch.whole("mbconv_inference", choice)


def _gate(run: Run, pooled: Tensor | None, weights: Weights, settings: Settings) -> Tensor | None:
    if weights.w1 is None:
        return None
    return run("squeeze_excite")(
        pooled, weights.w1, weights.b1, weights.w2, weights.b2, settings.se_act, settings.gate_act
    )


def _statistics(
    run: Run, bn: BatchNorm, partials: Tensor | None, running: Running | None, z: Tensor
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


def expand(run: Run, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
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
    run = runner(x, weights, settings)
    e = expand_stats = None
    if weights.expand is not None:
        assert weights.expand_bn is not None
        e, partials = expand(run, x, weights)
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
