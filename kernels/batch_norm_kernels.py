"""Triton kernels of BatchNorm's vector work: a block of channels a program, partial rows merged in fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import (
    activation_grad,
    add_tile_statistics,
    affine,
    bound,
    fold,
    normalize,
    store_statistics,
)


@triton.jit
def _store_vectors(vectors, weight, bias, mean, var, eps, channels, cols, col_mask):
    """The five rows of BatchNormStats."""
    scale, shift, invstd = fold(weight, bias, mean, var, eps, cols, col_mask)
    tl.store(vectors + cols, mean, mask=col_mask)
    tl.store(vectors + channels + cols, var, mask=col_mask)
    tl.store(vectors + 2 * channels + cols, invstd, mask=col_mask)
    tl.store(vectors + 3 * channels + cols, scale, mask=col_mask)
    tl.store(vectors + 4 * channels + cols, shift, mask=col_mask)


@triton.jit
def _move(running, towards, momentum, cols, col_mask):
    """An exponential moving average, in place; rounded once where the buffer is of 16 bits."""
    old = tl.load(running + cols, mask=col_mask, other=0.0).to(tl.float32)
    tl.store(running + cols, (old + momentum * (towards - old)).to(running.dtype.element_ty), mask=col_mask)


@triton.jit
def batch_norm_finalize_kernel(
    stats,  # [P, 3, C]
    weight,  # [C] or None
    bias,  # [C] or None
    vectors,  # [5, C]
    running_mean,  # [C] or None, moved in place
    running_var,  # [C] or None
    batches,  # [] int64 or None, counted up
    eps,
    momentum,
    correction,  # count / (count - 1)
    partials,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    # Means are summed as differences from one of them: they may be 10^5 times what they differ by.
    origin = tl.load(stats + channels + cols, mask=col_mask, other=0.0)
    count_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    mean_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, partials, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        mask = (rows < partials)[:, None] & col_mask[None, :]
        place = stats + rows[:, None].to(tl.int64) * 3 * channels + cols[None, :]
        count = tl.load(place, mask=mask, other=0.0)
        count_sum += count
        mean_sum += count * (tl.load(place + channels, mask=mask, other=0.0) - origin[None, :])
    total = tl.sum(count_sum, 0)
    total = tl.where(total > 0.0, total, 1.0)
    offset = tl.sum(mean_sum, 0) / total
    m2_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, partials, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        mask = (rows < partials)[:, None] & col_mask[None, :]
        place = stats + rows[:, None].to(tl.int64) * 3 * channels + cols[None, :]
        count = tl.load(place, mask=mask, other=0.0)
        deviation = (tl.load(place + channels, mask=mask, other=0.0) - origin[None, :]) - offset[None, :]
        m2_sum += tl.load(place + 2 * channels, mask=mask, other=0.0) + count * deviation * deviation
    var = tl.sum(m2_sum, 0) / total
    _store_vectors(vectors, weight, bias, origin + offset, var, eps, channels, cols, col_mask)
    if running_mean is not None:
        _move(running_mean, origin + offset, momentum, cols, col_mask)
        _move(running_var, var * correction, momentum, cols, col_mask)
    if batches is not None:
        # One program counts; a scalar's address has to be a block's to be masked.
        one = batches + tl.program_id(0) + tl.arange(0, 1)
        first = tl.program_id(0) + tl.arange(0, 1) < 1
        tl.store(one, tl.load(one, mask=first, other=0) + 1, mask=first)


@triton.jit
def batch_norm_fold_kernel(
    weight,  # [C] or None
    bias,  # [C] or None
    mean,  # [C]
    var,  # [C]
    vectors,  # [5, C]
    eps,
    channels,
    BLOCK_N: tl.constexpr,
):
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    m = tl.load(mean + cols, mask=col_mask, other=0.0).to(tl.float32)
    v = tl.load(var + cols, mask=col_mask, other=0.0).to(tl.float32)
    _store_vectors(vectors, weight, bias, m, v, eps, channels, cols, col_mask)


@triton.jit
def channel_stats_kernel(
    z,  # [length, C]
    stats,  # [groups, 3, C]
    length,
    span,
    col_tiles,
    units,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    channels = units * UNIT
    pid = tl.program_id(0)
    group = pid // col_tiles
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    rows = tl.arange(0, BLOCK_M)
    count = tl.zeros([BLOCK_N], tl.float32)
    mean = tl.zeros([BLOCK_N], tl.float32)
    m2 = tl.zeros([BLOCK_N], tl.float32)
    for step in range(span):
        start = (group.to(tl.int64) * span + step) * BLOCK_M
        valid = start + rows < length
        offsets = start * channels + rows[:, None] * channels + cols[None, :]
        values = tl.load(z + offsets, mask=valid[:, None] & col_mask[None, :], other=0.0).to(tl.float32)
        count, mean, m2 = add_tile_statistics(count, mean, m2, values, valid)
    store_statistics(stats, group, channels, cols, col_mask, count, mean, m2)


@triton.jit
def batch_norm_reduce_kernel(
    dy,  # [rows, C]
    z,  # [rows, C]
    row_scale,  # [segments] or None
    scale,  # [C] or None
    shift,
    mean,  # [C]
    invstd,
    sums,  # [groups, 2, C]
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
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    total_hat = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        for step in range(span):
            start = (split.to(tl.int64) * span + step) * BLOCK_M
            mask = (start + rows < bound(length, segment, segments))[:, None] & col_mask[None, :]
            offsets = (segment * length + start) * channels + rows[:, None] * channels + cols[None, :]
            g = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
            value = tl.load(z + offsets, mask=mask, other=0.0).to(tl.float32)
            if row_scale is not None:
                g = g * tl.load(row_scale + segment, mask=segment < segments, other=0.0)
            if ACT != "none":
                g = g * activation_grad(affine(value, scale, shift, cols, col_mask), ACT)
            total += g
            total_hat += g * normalize(value, mean, invstd, cols, col_mask)
    place = sums + group.to(tl.int64) * 2 * channels + cols
    tl.store(place, tl.sum(total, 0), mask=col_mask)
    tl.store(place + channels, tl.sum(total_hat, 0), mask=col_mask)


@triton.jit
def _store_backward(sum_g, sum_hat, invstd, scale, grads, slopes, count, channels, cols, col_mask):
    """The parameters' gradients and the slopes of the input's gradient, from sums left to add over the rows."""
    dbias = tl.sum(sum_g, 0)
    dweight = tl.sum(sum_hat, 0)
    a = tl.load(scale + cols, mask=col_mask, other=0.0)
    share = tl.where(count > 0.0, -a / tl.where(count > 0.0, count, 1.0), a * 0.0)
    b = share * tl.load(invstd + cols, mask=col_mask, other=0.0) * dweight
    tl.store(grads + cols, dbias, mask=col_mask)
    tl.store(grads + channels + cols, dweight, mask=col_mask)
    tl.store(slopes + cols, b, mask=col_mask)
    tl.store(slopes + channels + cols, share * dbias, mask=col_mask)


@triton.jit
def batch_norm_backward_finalize_kernel(
    sums,  # [P, 2, C]
    invstd,  # [C]
    scale,  # [C]
    grads,  # [2, C]: dbias, dweight
    slopes,  # [2, C]: b, c of BatchNormGrad
    count,  # rows normalized over, as a float; 0 where the statistics are frozen
    partials,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    sum_g = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sum_hat = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, partials, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        mask = (rows < partials)[:, None] & col_mask[None, :]
        place = sums + rows[:, None].to(tl.int64) * 2 * channels + cols[None, :]
        sum_g += tl.load(place, mask=mask, other=0.0)
        sum_hat += tl.load(place + channels, mask=mask, other=0.0)
    _store_backward(sum_g, sum_hat, invstd, scale, grads, slopes, count, channels, cols, col_mask)


@triton.jit
def gate_batch_norm_finalize_kernel(
    sums,  # [5, N, P, C], see pointwise_backward
    gate,  # [N, C] or None
    pool_grad,  # [N, C] or None
    invstd,  # [C]
    scale,  # [C]
    grads,  # [2, C]: dbias, dweight
    slopes,  # [2, C]: b, c of BatchNormGrad
    count,  # as above
    rows,  # N * P
    parts,  # P
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """gate_batch_norm_sums and batch_norm_backward_finalize, with nothing written in between."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    # Not rows.to: of one row Triton makes a constant.
    plane = (tl.program_id(0).to(tl.int64) * 0 + rows) * channels
    sum_g = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sum_hat = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, rows, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        mask = (row < rows)[:, None] & col_mask[None, :]
        s2 = sums + plane + row[:, None].to(tl.int64) * channels + cols[None, :]
        image = (row // parts)[:, None].to(tl.int64) * channels + cols[None, :]
        g = tl.load(s2, mask=mask, other=0.0)
        g_hat = tl.load(s2 + plane, mask=mask, other=0.0)
        if gate is not None:
            s = tl.load(gate + image, mask=mask, other=0.0)
            g = g * s
            g_hat = g_hat * s
        if pool_grad is not None:
            q = tl.load(pool_grad + image, mask=mask, other=0.0)
            g += q * tl.load(s2 + 2 * plane, mask=mask, other=0.0)
            g_hat += q * tl.load(s2 + 3 * plane, mask=mask, other=0.0)
        sum_g += g
        sum_hat += g_hat
    _store_backward(sum_g, sum_hat, invstd, scale, grads, slopes, count, channels, cols, col_mask)
