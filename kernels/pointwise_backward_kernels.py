"""Triton kernels of the 1x1 convolution's backward: input gradient, weight gradient, and both from one read.

``dz`` is recomputed on load from (dy, z) and the activation from x: nothing of it was ever stored. See
docs/kernels/pointwise.md for the derivation of the five sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import activation, activation_grad, affine, batch_norm_input_grad, bound, dot, settle


@triton.jit
def _conv_grad(
    dy, z, row_scale, a, b, c, mean, segment, segments, first_row, rows, valid, channels, cols, col_mask
):
    """``dz`` [rows, cols] in fp32, zero where masked: ``a * (row_scale * dy) + b * (z - mean) + c``."""
    offsets = first_row * channels + rows[:, None] * channels + cols[None, :]
    mask = valid[:, None] & col_mask[None, :]
    g = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
    if row_scale is not None:
        g = g * tl.load(row_scale + segment, mask=segment < segments, other=0.0)
    if a is not None:
        g = batch_norm_input_grad(g, z, offsets, mask, a, b, c, mean, cols, col_mask)
        # b and c make something of the zeros loaded beyond the edge.
        g = tl.where(mask, g, 0.0)
    return g


@triton.jit
def _gate(act, gate, segment, segments, channels, cols, col_mask):
    """``gate * act`` for ``act`` [channels, rows] and ``cols`` [channels, 1]."""
    if gate is not None:
        act = act * tl.load(
            gate + segment * channels + cols, mask=cols < bound(channels, segment, segments), other=0.0
        )
    return act


@triton.jit
def _sum_terms(g, values, n, act, valid, in_mean, cols, col_mask, IN_ACT: tl.constexpr):
    """The terms of the five sums over rows: G a, G a', G a' x_c, a', a' x_c, each [channels, rows].

    n is the pre-activation, x_c is x - mean. Rows are summed and x_c divided by the deviation once, before the
    store: a reduction in every tile would cost more than the rest of the kernel.
    """
    slope = tl.where(valid[None, :], activation_grad(n, IN_ACT), 0.0)
    centred = values - tl.load(in_mean + cols, mask=col_mask, other=0.0)
    # g is zero in invalid rows: its dz is.
    return g * act, g * slope, g * slope * centred, slope, slope * centred


@triton.jit
def _store_sums(
    sums, s1, s2, s3, s4, s5, in_invstd, segment, segments, split, splits, channels, cols, col_mask
):
    """Write one segment's part into [5, segments, splits, channels]."""
    invstd = tl.load(in_invstd + cols, mask=col_mask, other=0.0)
    mask = cols < bound(channels, segment, segments)
    plane = (segment * 0 + segments) * splits * channels
    row = sums + (segment * splits + split) * channels + cols
    tl.store(row, tl.sum(s1, 1), mask=mask)
    tl.store(row + plane, tl.sum(s2, 1), mask=mask)
    tl.store(row + 2 * plane, tl.sum(s3, 1) * invstd, mask=mask)
    tl.store(row + 3 * plane, tl.sum(s4, 1), mask=mask)
    tl.store(row + 4 * plane, tl.sum(s5, 1) * invstd, mask=mask)


@triton.jit
def _store_input_grad(dx, residual_grad, g, offsets, mask):
    if residual_grad is not None:
        g += tl.load(residual_grad + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + offsets, g.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def pointwise_dgrad_kernel(
    dy,  # [rows, cout]
    z,  # [rows, cout] or None
    x,  # [rows, cin], read only with sums
    weight,  # [cout, cin]
    dx,  # [rows, cin]
    row_scale,  # [segments] or None
    a,  # BatchNormGrad, each [cout] or None
    b,
    c,
    mean,
    in_scale,  # [cin] or None
    in_shift,
    in_mean,
    in_invstd,
    residual_grad,  # [rows, cin] or None
    sums,  # [5, segments, splits, cin] or None
    segments,
    length,
    splits,
    span,
    per_program,
    col_tiles,
    cin_units,
    cout_units,
    CIN_UNIT: tl.constexpr,
    COUT_UNIT: tl.constexpr,
    IN_ACT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    cin = cin_units * CIN_UNIT
    cout = cout_units * COUT_UNIT
    pid = tl.program_id(0)
    group = pid // col_tiles
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < cin
    split = group % splits
    rows = tl.arange(0, BLOCK_M)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        s1 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s2 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s3 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s4 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s5 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for step in range(span):
            start = (split.to(tl.int64) * span + step) * BLOCK_M
            valid = start + rows < bound(length, segment, segments)
            first_row = segment * length + start
            g = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for k0 in range(0, cout, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                k_mask = k < cout
                dz = _conv_grad(
                    dy,
                    z,
                    row_scale,
                    a,
                    b,
                    c,
                    mean,
                    segment,
                    segments,
                    first_row,
                    rows,
                    valid,
                    cout,
                    k,
                    k_mask,
                ).to(dy.dtype.element_ty)
                w = tl.load(
                    weight + k[None, :].to(tl.int64) * cin + cols[:, None],
                    mask=col_mask[:, None] & k_mask[None, :],
                    other=0.0,
                )
                g = dot(w, tl.trans(dz), g, PRECISION, UPCAST)
            offsets = first_row * cin + rows[None, :] * cin + cols[:, None]
            mask = col_mask[:, None] & valid[None, :]
            if sums is not None:
                values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
                n = affine(values, in_scale, in_shift, cols[:, None], col_mask[:, None])
                act = activation(n, IN_ACT)
                t1, t2, t3, t4, t5 = _sum_terms(
                    g, values, n, act, valid, in_mean, cols[:, None], col_mask[:, None], IN_ACT
                )
                s1 += t1
                s2 += t2
                s3 += t3
                s4 += t4
                s5 += t5
            _store_input_grad(dx, residual_grad, g, offsets, mask)
        if sums is not None:
            _store_sums(
                sums, s1, s2, s3, s4, s5, in_invstd, segment, segments, split, splits, cin, cols, col_mask
            )


@triton.jit
def pointwise_wgrad_kernel(
    dy,  # [rows, cout]
    z,  # [rows, cout] or None
    x,  # [rows, cin]
    dweight,  # [groups, cout, cin] partial sums
    row_scale,  # [segments] or None
    a,  # BatchNormGrad, each [cout] or None
    b,
    c,
    mean,
    in_scale,  # [cin] or None
    in_shift,
    gate,  # [segments, cin] or None
    segments,
    length,
    splits,
    span,
    per_program,
    cout_tiles,
    cin_tiles,
    cin_units,
    cout_units,
    CIN_UNIT: tl.constexpr,
    COUT_UNIT: tl.constexpr,
    IN_ACT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One [BLOCK_K (cout), BLOCK_N (cin)] tile of the weight's gradient over one group's rows."""
    cin = cin_units * CIN_UNIT
    cout = cout_units * COUT_UNIT
    pid = tl.program_id(0)
    group = pid // (cout_tiles * cin_tiles)
    tile = pid % (cout_tiles * cin_tiles)
    k = (tile // cin_tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    cols = (tile % cin_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    k_mask = k < cout
    col_mask = cols < cin
    split = group % splits
    rows = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        for step in range(span):
            start = (split.to(tl.int64) * span + step) * BLOCK_M
            valid = start + rows < bound(length, segment, segments)
            first_row = segment * length + start
            dz = _conv_grad(
                dy, z, row_scale, a, b, c, mean, segment, segments, first_row, rows, valid, cout, k, k_mask
            )
            offsets = first_row * cin + rows[None, :] * cin + cols[:, None]
            values = tl.load(x + offsets, mask=col_mask[:, None] & valid[None, :], other=0.0)
            if (in_scale is not None) or (IN_ACT != "none") or (gate is not None):
                act = activation(
                    affine(values.to(tl.float32), in_scale, in_shift, cols[:, None], col_mask[:, None]),
                    IN_ACT,
                )
                act = _gate(act, gate, segment, segments, cin, cols[:, None], col_mask[:, None])
                values = settle(act.to(x.dtype.element_ty), INTERPRET)
            dz = dz.to(dy.dtype.element_ty)
            acc = dot(tl.trans(dz), tl.trans(values), acc, PRECISION, UPCAST)
    place = (group.to(tl.int64) * cout + k[:, None]) * cin + cols[None, :]
    tl.store(dweight + place, acc, mask=k_mask[:, None] & col_mask[None, :])


@triton.jit
def pointwise_backward_kernel(
    dy,  # [rows, cout]
    z,  # [rows, cout] or None
    x,  # [rows, cin]
    weight,  # [cout, cin]
    dx,  # [rows, cin]
    dweight,  # [groups, cout, cin] partial sums
    row_scale,  # [segments] or None
    a,  # BatchNormGrad, each [cout] or None
    b,
    c,
    mean,
    in_scale,  # [cin] or None
    in_shift,
    in_mean,
    in_invstd,
    gate,  # [segments, cin] or None
    residual_grad,  # [rows, cin] or None
    sums,  # [5, segments, splits, cin] or None
    segments,
    length,
    splits,
    span,
    per_program,
    col_tiles,
    cin_units,
    cout_units,
    CIN_UNIT: tl.constexpr,
    COUT_UNIT: tl.constexpr,
    IN_ACT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Input and weight gradient together; all of cout fits in BLOCK_K, so dz and the activation are made once."""
    cin = cin_units * CIN_UNIT
    cout = cout_units * COUT_UNIT
    pid = tl.program_id(0)
    group = pid // col_tiles
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < cin
    k = tl.arange(0, BLOCK_K)
    k_mask = k < cout
    split = group % splits
    rows = tl.arange(0, BLOCK_M)
    w_mask = col_mask[:, None] & k_mask[None, :]
    acc = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        s1 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s2 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s3 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s4 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s5 = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for step in range(span):
            start = (split.to(tl.int64) * span + step) * BLOCK_M
            valid = start + rows < bound(length, segment, segments)
            first_row = segment * length + start
            dz = _conv_grad(
                dy, z, row_scale, a, b, c, mean, segment, segments, first_row, rows, valid, cout, k, k_mask
            ).to(dy.dtype.element_ty)
            # Loaded here although it never changes: kept over the loop it would fill the registers.
            w = tl.load(weight + k[None, :] * cin + cols[:, None], mask=w_mask, other=0.0)
            # Channels are the rows of g, so that sums over pixels mostly stay within a warp.
            g = dot(w, tl.trans(dz), tl.zeros([BLOCK_N, BLOCK_M], tl.float32), PRECISION, UPCAST)
            offsets = first_row * cin + rows[None, :] * cin + cols[:, None]
            mask = col_mask[:, None] & valid[None, :]
            values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
            n = affine(values, in_scale, in_shift, cols[:, None], col_mask[:, None])
            act = activation(n, IN_ACT)
            if sums is not None:
                t1, t2, t3, t4, t5 = _sum_terms(
                    g, values, n, act, valid, in_mean, cols[:, None], col_mask[:, None], IN_ACT
                )
                s1 += t1
                s2 += t2
                s3 += t3
                s4 += t4
                s5 += t5
            _store_input_grad(dx, residual_grad, g, offsets, mask)
            act = _gate(act, gate, segment, segments, cin, cols[:, None], col_mask[:, None])
            act = settle(act.to(x.dtype.element_ty), INTERPRET)
            acc = dot(tl.trans(dz), tl.trans(act), acc, PRECISION, UPCAST)
        if sums is not None:
            _store_sums(
                sums, s1, s2, s3, s4, s5, in_invstd, segment, segments, split, splits, cin, cols, col_mask
            )
    place = (group.to(tl.int64) * cout + k[:, None]) * cin + cols[None, :]
    tl.store(dweight + place, acc, mask=k_mask[:, None] & col_mask[None, :])
