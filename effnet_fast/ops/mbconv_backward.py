"""The backward of the MBConv block as a sequence of kernels. Its derivation is section 8 of docs/design.md."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..records import DepthwiseIncoming, PointwiseIncoming, Source
from ..types import BatchNormParamGrad, BatchNormStats, ConvGrad, SqueezeExciteGrad
from .mbconv_kernels import Run, expand, runner
from .mbconv_types import BatchNorm, Grads, Needs, Saved, Settings, Weights
from .synchronized import joint_backward

#: Sums, how many values they are of, statistics and the BatchNorm -> its gradients.
Finalize = Callable[[Tensor, int, BatchNormStats, BatchNorm], BatchNormParamGrad]


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
    """Every gradient of the block from ``dy`` and what :func:`.mbconv_kernels.training_forward` kept.

    Args:
        learnt: weights of expansion, depthwise convolution and projection as their modules have them, before any
            rounding; their gradients have these shapes and dtypes.
        norm_dtype: of the gradients of the BatchNorms' parameters, by default the accumulation dtype.
    """
    run = runner(x, weights, settings)
    if saved.e is None and weights.expand is not None:
        saved = saved._replace(e=expand(run, x, weights)[0])
    finalize = functools.partial(_finalize, run, norm_dtype)
    n, _, height, width = saved.d.shape
    count = n * height * width

    sums = run("batch_norm_reduce")(dy, saved.p, saved.project_stats.norm, row_scale=row_scale)
    bn3 = finalize(sums, count, saved.project_stats, weights.project_bn)
    project = run("pointwise_backward")(
        PointwiseIncoming(dy, saved.p, bn3.grad, row_scale),
        _source(saved.d, saved.depthwise_stats, settings.depthwise_act, saved.gate),
        weights.project,
        need_dw=needs.project,
        parts=True,
    )
    se = _excite(run, project.sums, saved, weights, settings)
    pool_grad = None if se is None else se.dpooled
    bn2 = _middle(run, finalize, norm_dtype, project.sums, saved, pool_grad, weights.depthwise_bn, count)
    behind = (settings.depthwise_act, saved.gate, pool_grad, bn2.grad)
    residual_grad = dy if settings.residual else None
    stencil = run("depthwise_backward")(
        DepthwiseIncoming(project.dx, saved.d, saved.depthwise_stats.affine, *behind),
        Source(x) if saved.e is None else _source(saved.e, saved.expand_stats, settings.expand_act),
        *(weights.depthwise, settings.stride, settings.padding),
        residual_grad=residual_grad if saved.e is None else None,
        need_dx=needs.x,
        need_dw=needs.depthwise,
        parts=True,
    )
    first, bn1 = ConvGrad(stencil.dx, None, None), None
    if saved.e is not None:
        first, bn1 = _first(run, finalize, stencil, x, saved, weights, residual_grad, needs)
    rows = (first.dweight, stencil.dweight, project.dweight)
    dexpand, ddepthwise, dproject = run("merge_weight_grads")(rows, learnt)
    return Grads(
        *(first.dx, dexpand, None if bn1 is None else bn1.params),
        *(ddepthwise, bn2.params, dproject, bn3.params),
        *((None,) * 4 if se is None else se[1:]),
    )


def _source(z: Tensor, stats: BatchNormStats | None, act: str, gate: Tensor | None = None) -> Source:
    """A raw output behind its BatchNorm and activation."""
    assert stats is not None
    return Source(z, stats.affine, act, gate, stats.norm)


def _finalize(
    run: Run, dtype: torch.dtype | None, sums: Tensor, count: int, stats: BatchNormStats, bn: BatchNorm
) -> BatchNormParamGrad:
    formula = run("batch_norm_backward_finalize")
    if bn.training and bn.group:
        return joint_backward(formula, sums, count, stats, bn.group)
    return formula(sums, count, stats, bn.training, dtype)  # type: ignore[no-any-return]


def _excite(
    run: Run, sums: Tensor, saved: Saved, weights: Weights, settings: Settings
) -> SqueezeExciteGrad | None:
    if saved.gate is None:
        return None
    layers = (weights.w1, weights.b1, weights.w2, weights.b2)
    area = saved.d.shape[2] * saved.d.shape[3]
    return run("squeeze_excite_backward")(  # type: ignore[no-any-return]
        sums[0], saved.pooled, *layers, settings.se_act, settings.gate_act, area
    )


def _middle(
    run: Run,
    finalize: Finalize,
    dtype: torch.dtype | None,
    sums: Tensor,
    saved: Saved,
    pool_grad: Tensor | None,
    bn: BatchNorm,
    count: int,
) -> BatchNormParamGrad:
    """The depthwise convolution's BatchNorm, which needs no pass over its output."""
    if bn.training and bn.group:
        rows = run("gate_batch_norm_sums")(sums, saved.gate, pool_grad)
        return finalize(rows, count, saved.depthwise_stats, bn)
    return run("gate_batch_norm_finalize")(  # type: ignore[no-any-return]
        sums, saved.gate, pool_grad, count, saved.depthwise_stats, bn.training, dtype
    )


def _first(
    run: Run,
    finalize: Finalize,
    stencil: ConvGrad,
    x: Tensor,
    saved: Saved,
    weights: Weights,
    residual_grad: Tensor | None,
    needs: Needs,
) -> tuple[ConvGrad, BatchNormParamGrad]:
    """The expansion and its BatchNorm."""
    assert saved.e is not None and saved.expand_stats is not None and weights.expand_bn is not None
    assert stencil.dx is not None and stencil.sums is not None
    n, _, height, width = saved.e.shape
    bn = finalize(stencil.sums, n * height * width, saved.expand_stats, weights.expand_bn)
    grads = run("pointwise_backward")(
        *(PointwiseIncoming(stencil.dx, saved.e, bn.grad), Source(x), weights.expand),
        residual_grad=residual_grad,
        need_dx=needs.x,
        need_dw=needs.expand,
        parts=True,
    )
    return grads, bn
