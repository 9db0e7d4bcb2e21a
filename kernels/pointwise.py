"""Launchers of the 1x1 convolution on Triton; meaning and signatures are the reference's."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..records import PointwiseIncoming, Source
from ..types import Affine, ConvGrad, ConvOut, RunningNorm
from . import pointwise_backward_kernels, pointwise_kernels, tuning
from .launch import (
    REMEMBERED,
    Prepared,
    config,
    empty_image,
    epilogue_vectors,
    launch,
    mean_of_nothing,
    parts,
    sum_partials,
    vector_like,
)
from .runtime import RowPlan, ceil_div, channel_unit, dot_options, per_column, plan_rows


class Forward(NamedTuple):
    """A launch of the forward kernel and what it writes."""

    prepared: Prepared
    tensors: tuple[Tensor | None, ...]  # in the order of the kernel's arguments
    y: Tensor
    pooled: Tensor | None  # [N, splits, Cout]
    partial: Tensor | None

    def launch(self) -> None:
        x, weight, _, *others, pooled, partial = self.tensors
        self.prepared(self.tensors, (x, weight, *others), (self.y, pooled, partial))


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
    """See :func:`effnet_fast.backend.reference.pointwise`; images are dense NHWC, vectors contiguous fp32."""
    if x.numel() == 0 or weight.shape[0] == 0:
        n, _, height, width = x.shape
        cout = weight.shape[0]
        pooled = mean_of_nothing(x, n, cout) if pool else None
        no_stats = x.new_zeros((1, 3, cout), dtype=torch.float32) if stats else None
        return ConvOut(empty_image(n, cout, height, width, x), pooled, no_stats)
    forward = pointwise_launch(
        x, weight, in_affine, in_act, gate, affine, act, row_scale, residual, pool, stats
    )
    forward.launch()
    return ConvOut(forward.y, None if forward.pooled is None else parts(forward.pooled), forward.partial)


def pointwise_launch(
    x: Tensor,
    weight: Tensor,
    in_affine: Affine | None = None,
    in_act: str = "none",
    gate: Tensor | None = None,
    affine: Affine | RunningNorm | None = None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
    pool: bool = False,
    stats: bool = False,
) -> Forward:
    """:func:`pointwise` before its launch; ``x`` has pixels."""
    n, cin, height, width = x.shape
    cout = weight.shape[0]
    by_image = pool or gate is not None or row_scale is not None
    out_vectors, eps = epilogue_vectors(affine)
    options = (in_act, act, *dot_options(x).items())
    prepared, groups, splits = _planned_forward(
        *(n, cin, height * width, cout, by_image, pool or stats, eps, options),
        tuple(config("pointwise_fwd", x, cout).items()),
    )
    y = empty_image(n, cout, height, width, x)
    pooled = vector_like(x, n, splits, cout) if pool else None
    partial = vector_like(x, groups, 3, cout) if stats else None
    in_vectors = in_affine or (None, None)
    tensors = (x, weight, y, *in_vectors, gate, *out_vectors, row_scale, residual, pooled, partial)
    return Forward(prepared, tensors, y, pooled, partial)


@functools.lru_cache(REMEMBERED)
def _planned_forward(
    n: int,
    cin: int,
    area: int,
    cout: int,
    by_image: bool,
    reduces: bool,
    eps: float,
    options: tuple[Any, ...],
    meta: tuple[tuple[str, int], ...],
) -> tuple[Prepared, int, int]:
    """The launch, how many partial rows it writes, and how many of them to an image."""
    in_act, act, *dot = options
    tile = dict(meta)
    tiles = ceil_div(cout, tile["BLOCK_N"])
    plan = plan_rows(*_segments(n, area, by_image), tile["BLOCK_M"], per_column(tiles) if reduces else None)
    scalars = (eps, 1.0 / area, *plan.arguments, tiles, *_units(cin, cout))
    everything = {"IN_ACT": in_act, "ACT": act, **dict(dot), **tile}
    prepared = Prepared(pointwise_kernels.pointwise_fwd_kernel, plan.groups * tiles, scalars, everything)
    return prepared, plan.groups, plan.splits


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
    """See :func:`effnet_fast.backend.reference.pointwise_backward`.

    One kernel makes both gradients where all of cout fits into a tile, else one each.
    """
    dy, z, grad, row_scale = incoming.used
    x, in_affine, in_act, gate, in_norm = source
    n, cin, height, width = x.shape
    cout = weight.shape[0]
    need_dx = need_dx or in_affine is not None
    with_sums = in_affine is not None
    dx = empty_image(n, cin, height, width, x) if need_dx else None
    if x.numel() == 0 or dy.numel() == 0:
        sums = x.new_zeros((5, n, cin), dtype=torch.float32) if with_sums else None
        dweight = x.new_zeros((cout, cin), dtype=torch.float32) if need_dw else None
        dweight = dweight.view(1, 1, -1) if parts and dweight is not None else dweight
        return ConvGrad(None if dx is None else dx.zero_(), dweight, sums)
    # Each kernel takes what it needs of these, in this order.
    behind = (row_scale, *(grad or (None,) * 4))
    activation = in_affine or (None, None)
    norm = in_norm if with_sums and in_norm is not None else (None, None)
    residual_grad = None if with_sums else residual_grad
    merged = tuning.find("pointwise_backward", x.dtype, x.device, cout) if need_dx and need_dw else None
    options = {"IN_ACT": in_act, **dot_options(x)}
    units = _units(cin, cout)
    dweight = sums = None

    if merged is not None:
        tiles = ceil_div(cin, merged["BLOCK_N"])
        by_image = with_sums or gate is not None or row_scale is not None
        plan = plan_rows(
            *_segments(n, height * width, by_image), merged["BLOCK_M"], _wgrad_programs(x, cout, cin, tiles)
        )
        sums, partial = _outputs(x, plan, cout, with_sums, True)
        launch(
            pointwise_backward_kernels.pointwise_backward_kernel,
            plan.groups * tiles,
            (dy, z, x, weight, dx, partial, *behind, *activation, *norm, gate, residual_grad, sums),
            (*plan.arguments, tiles, *units),
            reads=[dy, z, x, weight, *behind, *activation, *norm, gate, residual_grad],
            writes=[dx, partial, sums],
            **options,
            **merged,
        )
        return ConvGrad(dx, _merge_weight(partial, parts), _merge_sums(sums, n, cin, parts))

    if need_dw:
        meta = config("pointwise_wgrad", x, cin)
        grid = (ceil_div(cout, meta["BLOCK_K"]), ceil_div(cin, meta["BLOCK_N"]))
        by_image = gate is not None or row_scale is not None
        programs = _wgrad_programs(x, cout, cin, grid[0] * grid[1])
        plan = plan_rows(*_segments(n, height * width, by_image), meta["BLOCK_M"], programs)
        _, partial = _outputs(x, plan, cout, False, True)
        launch(
            pointwise_backward_kernels.pointwise_wgrad_kernel,
            plan.groups * grid[0] * grid[1],
            (dy, z, x, partial, *behind, *activation, gate),
            (*plan.arguments, *grid, *units),
            reads=[dy, z, x, *behind, *activation, gate],
            writes=[partial],
            **options,
            **meta,
        )
        dweight = _merge_weight(partial, parts)
    if need_dx:
        meta = config("pointwise_dgrad", x, cin)
        tiles = ceil_div(cin, meta["BLOCK_N"])
        by_image = with_sums or row_scale is not None
        plan = plan_rows(
            *_segments(n, height * width, by_image), meta["BLOCK_M"], per_column(tiles) if with_sums else None
        )
        sums, _ = _outputs(x, plan, cout, with_sums, False)
        launch(
            pointwise_backward_kernels.pointwise_dgrad_kernel,
            plan.groups * tiles,
            (dy, z, x, weight, dx, *behind, *activation, *norm, residual_grad, sums),
            (*plan.arguments, tiles, *units),
            reads=[dy, z, x if with_sums else None, weight, *behind, *activation, *norm, residual_grad],
            writes=[dx, sums],
            **options,
            **meta,
        )
    return ConvGrad(dx, dweight, _merge_sums(sums, n, cin, parts))


def _segments(n: int, area: int, by_image: bool) -> tuple[int, int]:
    return (n, area) if by_image else (1, n * area)


def _units(cin: int, cout: int) -> tuple[int, int, int, int]:
    cin_unit, cout_unit = channel_unit(cin), channel_unit(cout)
    return cin // cin_unit, cout // cout_unit, cin_unit, cout_unit


def _wgrad_programs(x: Tensor, cout: int, cin: int, tiles: int) -> int:
    """Partial sums of the weight's gradient: as many as add a sixteenth to the operands' traffic (written and read
    again), but at least what keeps a large GPU busy."""
    rows = x.numel() // cin
    affordable = rows * 2 * (cout + cin) * x.element_size() // (16 * cout * cin * 2 * 4)
    return max(1, min(per_column(tiles), max(affordable, ceil_div(264, tiles))))


def _outputs(
    x: Tensor, plan: RowPlan, cout: int, with_sums: bool, with_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    n, cin = x.shape[:2]
    sums = vector_like(x, 5, n, plan.splits, cin) if with_sums else None
    return sums, vector_like(x, plan.groups, cout, cin) if with_weight else None


def _merge_sums(sums: Tensor | None, n: int, cin: int, parts: bool) -> Tensor | None:
    if sums is None or parts:
        return sums
    return sum_partials(sums.view(5 * n, -1, cin)).view(5, n, cin)


def _merge_weight(partial: Tensor | None, parts: bool) -> Tensor | None:
    if partial is None:
        return None
    groups, cout, cin = partial.shape
    rows = partial.view(groups, 1, cout * cin) if parts else partial.view(1, groups, cout * cin)
    return rows if parts else sum_partials(rows).view(cout, cin)
