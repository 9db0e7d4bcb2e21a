"""Triton kernels of the elementwise passes and of the merge that ends every split reduction."""

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import activation, activation_grad, affine, affine_or_norm, batch_norm_input_grad, bound


@triton.jit
def affine_pool_kernel(
    z,  # [rows, C]
    scale,  # [C] or None
    shift,
    pooled,  # [segments, splits, C] sums over rows times pool_factor
    pool_factor,
    segments,
    length,
    splits,
    span,
    per_program,
    col_tiles,
    units,
    UNIT: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    channels = units * UNIT
    pid = tl.program_id(0)
    group = pid // col_tiles
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    split = group % splits
    rows = tl.arange(0, BLOCK_M)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(span):
            start = (split.to(tl.int64) * span + step) * BLOCK_M
            mask = (start + rows < bound(length, segment, segments))[:, None] & col_mask[None, :]
            offsets = (segment * length + start) * channels + rows[:, None] * channels + cols[None, :]
            value = tl.load(z + offsets, mask=mask, other=0.0).to(tl.float32)
            total += tl.where(mask, activation(affine(value, scale, shift, cols, col_mask), ACT), 0.0)
        place = (segment * splits + split) * channels + cols
        tl.store(
            pooled + place, tl.sum(total, 0) * pool_factor, mask=cols < bound(channels, segment, segments)
        )


@triton.jit
def affine_residual_kernel(
    z,  # [rows, C]
    scale,  # [C] or None; with mean and var, the BatchNorm's weight and bias
    shift,
    mean,  # [C] or None
    var,
    row_scale,  # [segments] or None
    residual,  # [rows, C] or None
    y,  # [rows, C]
    eps,
    segments,
    length,
    splits,
    span,
    per_program,
    col_tiles,
    units,
    UNIT: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    channels = units * UNIT
    pid = tl.program_id(0)
    group = pid // col_tiles
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    rows = tl.arange(0, BLOCK_M)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        for step in range(span):
            start = ((group % splits).to(tl.int64) * span + step) * BLOCK_M
            mask = (start + rows < bound(length, segment, segments))[:, None] & col_mask[None, :]
            offsets = (segment * length + start) * channels + rows[:, None] * channels + cols[None, :]
            value = tl.load(z + offsets, mask=mask, other=0.0).to(tl.float32)
            value = activation(affine_or_norm(value, scale, shift, mean, var, eps, cols, col_mask), ACT)
            if row_scale is not None:
                value = value * tl.load(row_scale + segment, mask=segment < segments, other=0.0)
            if residual is not None:
                value += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
            tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def batch_norm_act_grad_kernel(
    dy,  # [length, C]
    z,  # [length, C]
    scale,  # [C] or None
    shift,
    a,  # [C], the formula of BatchNormGrad
    b,
    c,
    mean,
    dz,  # [length, C]
    length,
    col_tiles,
    units,
    UNIT: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    channels = units * UNIT
    pid = tl.program_id(0)
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    rows = tl.arange(0, BLOCK_M)
    start = (pid // col_tiles).to(tl.int64) * BLOCK_M
    mask = (start + rows < length)[:, None] & col_mask[None, :]
    offsets = start * channels + rows[:, None] * channels + cols[None, :]
    g = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
    if ACT != "none":
        value = tl.load(z + offsets, mask=mask, other=0.0).to(tl.float32)
        g = g * activation_grad(affine(value, scale, shift, cols, col_mask), ACT)
    g = batch_norm_input_grad(g, z, offsets, mask, a, b, c, mean, cols, col_mask)
    tl.store(dz + offsets, g.to(dz.dtype.element_ty), mask=mask)


@triton.jit
def sum_partials_kernel(
    partial,  # [outer, partials, inner]
    total,  # [outer, inner]
    partials,
    inner,
    col_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sum over partials, always in the same order."""
    pid = tl.program_id(0)
    outer = (pid // col_tiles).to(tl.int64)
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < inner
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, partials, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        mask = (rows < partials)[:, None] & col_mask[None, :]
        place = (outer * partials + rows[:, None]) * inner + cols[None, :]
        acc += tl.load(partial + place, mask=mask, other=0.0)
    tl.store(total + outer * inner + cols, tl.sum(acc, 0), mask=col_mask)
