"""Triton kernels of the depthwise convolution and its backward: a tile of pixels times a block of channels.

Simple rather than fast: every tap loads its own input and recomputes the prologue, caches serve the overlap. Row
plans (runtime.RowPlan) apply with images as segments and pixels as rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import (
    activation,
    activation_grad,
    add_tile_statistics,
    affine,
    affine_or_norm,
    batch_norm_input_grad,
    bound,
    normalize,
    store_statistics,
)


@triton.jit
def depthwise_fwd_kernel(
    x,  # [N, H, W, C]
    weight,  # [C, K, K]
    y,  # [N, HO, WO, C]
    in_scale,  # [C] or None
    in_shift,
    scale,  # [C] or None; with mean and var, the BatchNorm's weight and bias
    shift,
    mean,  # [C] or None
    var,
    pooled,  # [N, splits, C] sums over pixels times pool_factor, or None
    stats,  # [groups, 3, C] or None
    eps,
    pool_factor,
    segments,
    length,  # HO * WO
    splits,
    span,
    per_program,
    col_tiles,
    height,
    width,
    out_width,
    left,
    top,
    units,
    UNIT: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    IN_ACT: tl.constexpr,
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
    # One number, not one per column as the other two: registers are what this kernel is short of.
    count = 0.0
    average = tl.zeros([BLOCK_N], tl.float32)
    m2 = tl.zeros([BLOCK_N], tl.float32)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        image = x + segment * height * width * channels
        pool = tl.zeros([BLOCK_N], tl.float32)
        for step in range(span):
            pixels = (split.to(tl.int64) * span + step) * BLOCK_M + tl.arange(0, BLOCK_M)
            valid = pixels < bound(length, segment, segments)
            row = (pixels // out_width) * STRIDE - top
            col = (pixels % out_width) * STRIDE - left
            # Where the first tap reads; the others are a uniform distance away.
            corner = image + ((row * width + col) * channels)[:, None] + cols[None, :]
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for kh in range(K):
                for kw in tl.static_range(K):
                    inside = (
                        valid & (row + kh >= 0) & (row + kh < height) & (col + kw >= 0) & (col + kw < width)
                    )
                    mask = inside[:, None] & col_mask[None, :]
                    value = tl.load(corner + (kh * width + kw) * channels, mask=mask, other=0.0).to(
                        tl.float32
                    )
                    if (in_scale is not None) or (IN_ACT != "none"):
                        value = activation(affine(value, in_scale, in_shift, cols, col_mask), IN_ACT)
                        # The padding surrounds the activated input.
                        value = tl.where(mask, value, 0.0)
                    tap = tl.load(weight + cols * (K * K) + (kh * K + kw), mask=col_mask, other=0.0)
                    acc += value * tap.to(tl.float32)[None, :]
            out = activation(affine_or_norm(acc, scale, shift, mean, var, eps, cols, col_mask), ACT)
            stored = out.to(y.dtype.element_ty)
            place = (segment * length + pixels)[:, None] * channels + cols[None, :]
            tl.store(y + place, stored, mask=valid[:, None] & col_mask[None, :])
            if pooled is not None:
                pool += tl.sum(tl.where(valid[:, None], out, 0.0), 0)
            if stats is not None:
                count, average, m2 = add_tile_statistics(count, average, m2, stored.to(tl.float32), valid)
        if pooled is not None:
            place = (segment * splits + split) * channels + cols
            tl.store(pooled + place, pool * pool_factor, mask=cols < bound(channels, segment, segments))
    if stats is not None:
        store_statistics(stats, group, channels, cols, col_mask, count, average, m2)


@triton.jit
def _conv_grad(
    dy, z, scale, shift, gate, pool_grad, a, b, c, mean, place, segment, segments, channels, mask, cols, col_mask,
    ACT: tl.constexpr,
):  # fmt: skip
    """``dz`` in fp32, zero where masked, with ``g = (dy * gate + pool_grad) * act'(affine(z))``."""
    g = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
    image_mask = cols < bound(channels, segment, segments)
    if gate is not None:
        g = g * tl.load(gate + segment * channels + cols, mask=image_mask, other=0.0)[None, :]
    if pool_grad is not None:
        g = g + tl.load(pool_grad + segment * channels + cols, mask=image_mask, other=0.0)[None, :]
    if ACT != "none":
        value = tl.load(z + place, mask=mask, other=0.0).to(tl.float32)
        g = g * activation_grad(affine(value, scale, shift, cols, col_mask), ACT)
    g = batch_norm_input_grad(g, z, place, mask, a, b, c, mean, cols, col_mask)
    return tl.where(mask, g, 0.0)


@triton.jit
def depthwise_dgrad_kernel(
    dy,  # [N, HO, WO, C]
    z,  # [N, HO, WO, C] or None
    x,  # [N, H, W, C], read only with in_scale
    weight,  # [C, K, K]
    dx,  # [N, H, W, C]
    scale,  # [C] or None
    shift,
    gate,  # [N, C] or None
    pool_grad,  # [N, C] or None
    a,  # BatchNormGrad, each [C] or None
    b,
    c,
    mean,
    in_scale,  # [C] or None
    in_shift,
    in_mean,
    in_invstd,
    residual_grad,  # [N, H, W, C] or None
    sums,  # [groups, 2, C] or None
    segments,
    length,  # H * W
    splits,
    span,
    per_program,
    col_tiles,
    width,
    out_height,
    out_width,
    left,
    top,
    units,
    UNIT: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    ACT: tl.constexpr,
    IN_ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    channels = units * UNIT
    pid = tl.program_id(0)
    group = pid // col_tiles
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    split = group % splits
    total = tl.zeros([BLOCK_N], tl.float32)
    total_hat = tl.zeros([BLOCK_N], tl.float32)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        for step in range(span):
            pixels = (split.to(tl.int64) * span + step) * BLOCK_M + tl.arange(0, BLOCK_M)
            valid = pixels < bound(length, segment, segments)
            row = pixels // width + top
            col = pixels % width + left
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for kh in range(K):
                for kw in tl.static_range(K):
                    # Output pixel whose tap (kh, kw) fell on this input pixel, if there is one.
                    oh = (row - kh) // STRIDE
                    ow = (col - kw) // STRIDE
                    inside = valid & (row >= kh) & (oh < out_height) & (col >= kw) & (ow < out_width)
                    if STRIDE > 1:
                        inside = inside & ((row - kh) % STRIDE == 0) & ((col - kw) % STRIDE == 0)
                    mask = inside[:, None] & col_mask[None, :]
                    place = ((segment * out_height + oh) * out_width + ow)[:, None] * channels + cols[None, :]
                    dz = _conv_grad(
                        dy, z, scale, shift, gate, pool_grad, a, b, c, mean, place, segment, segments,
                        channels, mask, cols, col_mask, ACT,
                    )  # fmt: skip
                    tap = tl.load(weight + cols * (K * K) + (kh * K + kw), mask=col_mask, other=0.0)
                    acc += dz * tap.to(tl.float32)[None, :]
            mask = valid[:, None] & col_mask[None, :]
            place = (segment * length + pixels)[:, None] * channels + cols[None, :]
            if in_scale is not None:
                value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
                acc = acc * activation_grad(affine(value, in_scale, in_shift, cols, col_mask), IN_ACT)
                # acc is zero in invalid rows: no dz reaches them.
                total += tl.sum(acc, 0)
                total_hat += tl.sum(acc * normalize(value, in_mean, in_invstd, cols, col_mask), 0)
            if residual_grad is not None:
                acc += tl.load(residual_grad + place, mask=mask, other=0.0).to(tl.float32)
            tl.store(dx + place, acc.to(dx.dtype.element_ty), mask=mask)
    if sums is not None:
        place = sums + group.to(tl.int64) * 2 * channels + cols
        tl.store(place, total, mask=col_mask)
        tl.store(place + channels, total_hat, mask=col_mask)


@triton.jit
def depthwise_wgrad_kernel(
    dy,  # [N, HO, WO, C]
    z,  # [N, HO, WO, C] or None
    x,  # [N, H, W, C]
    dweight,  # [groups, C, K, K] partial sums
    scale,  # [C] or None
    shift,
    gate,  # [N, C] or None
    pool_grad,  # [N, C] or None
    a,  # BatchNormGrad, each [C] or None
    b,
    c,
    mean,
    in_scale,  # [C] or None
    in_shift,
    segments,
    length,  # HO * WO
    splits,
    span,
    per_program,
    col_tiles,
    height,
    width,
    out_width,
    left,
    top,
    units,
    UNIT: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    ACT: tl.constexpr,
    IN_ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAPS: tl.constexpr,
):
    """One row of taps: the products of all of them stay in registers, one reduction over pixels at the end."""
    channels = units * UNIT
    pid = tl.program_id(0)
    kh = pid % K
    col_tile = (pid // K) % col_tiles
    group = pid // K // col_tiles
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < channels
    split = group % splits
    kw = tl.arange(0, TAPS)
    acc = tl.zeros([TAPS, BLOCK_M, BLOCK_N], tl.float32)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        image = x + segment * height * width * channels
        for step in range(span):
            pixels = (split.to(tl.int64) * span + step) * BLOCK_M + tl.arange(0, BLOCK_M)
            valid = pixels < bound(length, segment, segments)
            mask = valid[:, None] & col_mask[None, :]
            place = (segment * length + pixels)[:, None] * channels + cols[None, :]
            dz = _conv_grad(
                dy, z, scale, shift, gate, pool_grad, a, b, c, mean, place, segment, segments, channels, mask, cols,
                col_mask, ACT,
            )  # fmt: skip
            row = (pixels // out_width) * STRIDE - top + kh
            col = (pixels % out_width)[None, :] * STRIDE - left + kw[:, None]
            inside = (
                (valid & (row >= 0) & (row < height))[None, :]
                & (col >= 0)
                & (col < width)
                & (kw[:, None] < K)
            )
            in_mask = inside[:, :, None] & col_mask[None, None, :]
            offsets = (row[None, :] * width + col) * channels
            value = tl.load(image + offsets[:, :, None] + cols[None, None, :], mask=in_mask, other=0.0)
            value = value.to(tl.float32)
            if (in_scale is not None) or (IN_ACT != "none"):
                value = activation(affine(value, in_scale, in_shift, cols, col_mask), IN_ACT)
                value = tl.where(in_mask, value, 0.0)
            acc += dz[None, :, :] * value
    total = tl.sum(acc, 1)
    place = (group.to(tl.int64) * channels + cols[None, :]) * (K * K) + kh * K + kw[:, None]
    tl.store(dweight + place, total, mask=(kw[:, None] < K) & col_mask[None, :])
