"""Triton kernel of the 1x1 convolution: a GEMM over NHWC rows with everything around it fused.

Rows of a tile belong to one segment (an image, where something is indexed by image); runtime.RowPlan says which
segments and tiles a program walks through.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import activation, add_tile_statistics, affine, affine_or_norm, bound, dot, store_statistics


@triton.jit
def pointwise_fwd_kernel(
    x,  # [rows, cin]
    weight,  # [cout, cin], of any dtype: rounded to that of x
    y,  # [rows, cout]
    in_scale,  # [cin] or None
    in_shift,
    gate,  # [segments, cin] or None
    scale,  # [cout] or None; with mean and var, the BatchNorm's weight and bias
    shift,
    mean,  # [cout] or None
    var,
    row_scale,  # [segments] or None
    residual,  # [rows, cout] or None
    pooled,  # [segments, splits, cout] sums over rows times pool_factor, or None
    stats,  # [groups, 3, cout] or None
    eps,
    pool_factor,
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
    ACT: tl.constexpr,
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
    # Column tiles vary fastest: programs that share rows of x run together and find them in L2.
    group = pid // col_tiles
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < cout
    split = group % splits
    rows = tl.arange(0, BLOCK_M)
    count = tl.zeros([BLOCK_N], tl.float32)
    average = tl.zeros([BLOCK_N], tl.float32)
    m2 = tl.zeros([BLOCK_N], tl.float32)
    for j in range(per_program):
        segment = (group // splits).to(tl.int64) * per_program + j
        pool = tl.zeros([BLOCK_N], tl.float32)
        for step in range(span):
            start = (split.to(tl.int64) * span + step) * BLOCK_M
            valid = start + rows < bound(length, segment, segments)
            first_row = segment * length + start
            x_tile = x + first_row * cin + rows[:, None] * cin
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for k0 in range(0, cin, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                k_mask = k < cin
                a = tl.load(x_tile + k[None, :], mask=valid[:, None] & k_mask[None, :], other=0.0)
                if (in_scale is not None) or (IN_ACT != "none") or (gate is not None):
                    a = activation(affine(a.to(tl.float32), in_scale, in_shift, k, k_mask), IN_ACT)
                    if gate is not None:
                        gate_mask = k < bound(cin, segment, segments)
                        a = a * tl.load(gate + segment * cin + k, mask=gate_mask, other=0.0)[None, :]
                    a = a.to(x.dtype.element_ty)
                w = tl.load(
                    weight + cols[None, :].to(tl.int64) * cin + k[:, None],
                    mask=k_mask[:, None] & col_mask[None, :],
                    other=0.0,
                )
                acc = dot(a, w.to(x.dtype.element_ty), acc, PRECISION, UPCAST)

            out = activation(affine_or_norm(acc, scale, shift, mean, var, eps, cols, col_mask), ACT)
            if row_scale is not None:
                out = out * tl.load(row_scale + segment, mask=segment < segments, other=0.0)
            offsets = first_row * cout + rows[:, None] * cout + cols[None, :]
            mask = valid[:, None] & col_mask[None, :]
            if residual is not None:
                out += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
            stored = out.to(y.dtype.element_ty)
            tl.store(y + offsets, stored, mask=mask)
            if pooled is not None:
                pool += tl.sum(tl.where(valid[:, None], out, 0.0), 0)
            if stats is not None:
                count, average, m2 = add_tile_statistics(count, average, m2, stored.to(tl.float32), valid)
        if pooled is not None:
            row = segment * splits + split
            tl.store(
                pooled + row * cout + cols, pool * pool_factor, mask=cols < bound(cout, segment, segments)
            )
    if stats is not None:
        store_statistics(stats, group, cout, cols, col_mask, count, average, m2)
