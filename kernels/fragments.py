"""The pieces every Triton kernel is put together from: activations, BatchNorm, statistics, the dot.

All of them work on fp32 values in registers. Absent tensors are passed to kernels as ``None``, which the compiler
sees as a constant: ``if gate is not None`` costs nothing at run time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq


@triton.jit
def bound(size, index, count):
    """``size``, or 0 where ``index`` is past ``count``: a mask for the tail of a row plan.

    A bound rather than ``mask & (index < count)``: the interpreter cannot combine masks of different ranks.
    """
    return tl.where(index < count, size, 0)


@triton.jit
def sigmoid(n):
    # exp overflows to inf for n << 0 and 1 / inf is 0: no NaN for any finite n.
    return 1.0 / (1.0 + tl.exp(-n))


@triton.jit
def clamp06(n):
    # Comparisons in this order keep NaN, as PyTorch's activations do; tl.minimum and tl.maximum drop it.
    return tl.where(n < 0.0, 0.0, tl.where(n > 6.0, 6.0, n))


@triton.jit
def activation(n, ACT: tl.constexpr):
    """``act(n)``; the names of effnet_fast.backend.reference.ACTIVATIONS."""
    if ACT == "silu":
        r = n * sigmoid(n)
    elif ACT == "relu":
        r = tl.where(n < 0.0, 0.0, n)
    elif ACT == "relu6":
        r = clamp06(n)
    elif ACT == "hardswish":
        r = n * (clamp06(n + 3.0) / 6.0)
    elif ACT == "sigmoid":
        r = sigmoid(n)
    elif ACT == "hardsigmoid":
        r = clamp06(n + 3.0) / 6.0
    else:
        tl.static_assert(ACT == "none", "unknown activation")
        r = n
    return r


@triton.jit
def activation_grad(n, ACT: tl.constexpr):
    """``act'(n)``, at the kinks and at NaN the derivative that PyTorch uses."""
    if ACT == "silu":
        s = sigmoid(n)
        r = s * (1.0 + n * (1.0 - s))
    elif ACT == "relu":
        r = tl.where(n <= 0.0, 0.0, 1.0)
    elif ACT == "relu6":
        r = tl.where((n <= 0.0) | (n >= 6.0), 0.0, 1.0)
    elif ACT == "hardswish":
        r = tl.where(n <= -3.0, 0.0, tl.where(n < 3.0, (n + n + 3.0) / 6.0, 1.0))
    elif ACT == "sigmoid":
        s = sigmoid(n)
        r = s * (1.0 - s)
    elif ACT == "hardsigmoid":
        r = tl.where((n > -3.0) & (n < 3.0), 1.0 / 6.0, 0.0)
    else:
        tl.static_assert(ACT == "none", "unknown activation")
        r = n * 0.0 + 1.0
    return r


@triton.jit
def affine(z, scale, shift, cols, col_mask):
    """``scale * z + shift`` with the vectors' entries at ``cols``, along the last axis of ``z``."""
    if scale is not None:
        z = tl.load(scale + cols, mask=col_mask, other=0.0) * z + tl.load(
            shift + cols, mask=col_mask, other=0.0
        )
    return z


@triton.jit
def fold(weight, bias, mean, var, eps, cols, col_mask):
    """``(scale, shift, invstd)`` of a BatchNorm at ``cols``; ``mean`` and ``var`` are values, the others vectors or ``None``."""
    # 1 / sqrt rather than rsqrt, whose GPU instruction is approximate.
    invstd = 1.0 / tl.sqrt(var + eps)
    scale = invstd
    if weight is not None:
        scale = tl.load(weight + cols, mask=col_mask, other=0.0).to(tl.float32) * invstd
    shift = -mean * scale
    if bias is not None:
        shift += tl.load(bias + cols, mask=col_mask, other=0.0).to(tl.float32)
    return scale, shift, invstd


@triton.jit
def affine_or_norm(z, scale, shift, mean, var, eps, cols, col_mask):
    """:func:`affine`; with ``mean`` and ``var``, ``scale`` and ``shift`` are a BatchNorm's weight and bias."""
    if var is not None:
        m = tl.load(mean + cols, mask=col_mask, other=0.0).to(tl.float32)
        v = tl.load(var + cols, mask=col_mask, other=0.0).to(tl.float32)
        a, b, _ = fold(scale, shift, m, v, eps, cols, col_mask)
        z = a * z + b
    else:
        z = affine(z, scale, shift, cols, col_mask)
    return z


@triton.jit
def batch_norm_input_grad(g, z, offsets, mask, a, b, c, mean, cols, col_mask):
    """``a * g + b * (z - mean) + c``; ``g`` itself where there is no BatchNorm (``a`` is ``None``)."""
    if a is not None:
        value = tl.load(z + offsets, mask=mask, other=0.0).to(tl.float32)
        centred = value - tl.load(mean + cols, mask=col_mask, other=0.0)
        g = tl.load(a + cols, mask=col_mask, other=0.0) * g
        g += tl.load(b + cols, mask=col_mask, other=0.0) * centred + tl.load(
            c + cols, mask=col_mask, other=0.0
        )
    return g


@triton.jit
def normalize(z, mean, invstd, cols, col_mask):
    """``(z - mean) * invstd``."""
    centred = z - tl.load(mean + cols, mask=col_mask, other=0.0)
    return centred * tl.load(invstd + cols, mask=col_mask, other=0.0)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def settle(x, INTERPRET: tl.constexpr):
    """``x``, computed where it is and once.

    The compiler likes to recompute a cheap-looking operand of a dot in the dot's own layout, which means in every
    warp (8 times the SiLUs, and spills). It may not do so across an instruction that is declared to have effects.
    On sm_100 Triton 3.8 cannot pipeline a loop with such an instruction; its operands go through shared memory there.
    """
    if INTERPRET:
        r = x
    else:
        PURE: tl.constexpr = cuda_capability_geq(10) and not cuda_capability_geq(12)
        PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
        r = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, is_pure=PURE, pack=PACK)
    return r


@triton.jit
def merge_statistics(count, mean, m2, other_count, other_mean, other_m2):
    """Chan's merge of two (count, mean, sum of squared deviations)."""
    total = count + other_count
    share = other_count / tl.where(total > 0.0, total, 1.0)
    delta = other_mean - mean
    # In this order because the square of a large delta is infinite, which times a count of zero is NaN.
    return total, mean + delta * share, m2 + other_m2 + delta * (count * share) * delta


@triton.jit
def add_tile_statistics(count, mean, m2, values, valid):
    """Merge the rows of ``values`` [rows, columns] that are ``valid`` [rows] into running statistics per column.

    Two passes over the tile in registers, the second correcting the rounding of the first's mean: exact where
    the mean is 10^5 times the deviation, as E[x^2] - E[x]^2 is not.
    """
    rows = tl.sum(valid.to(tl.float32), 0)
    divisor = tl.where(rows > 0.0, rows, 1.0)
    tile_mean = tl.sum(tl.where(valid[:, None], values, 0.0), 0) / divisor
    deviation = tl.where(valid[:, None], values - tile_mean[None, :], 0.0)
    correction = tl.sum(deviation, 0) / divisor
    squares = tl.sum(deviation * deviation, 0)
    # Overflow is infinity, never the difference of two.
    tile_m2 = tl.where(squares > 3.0e38, squares, squares - rows * correction * correction)
    return merge_statistics(count, mean, m2, count * 0.0 + rows, tile_mean + correction, tile_m2)


@triton.jit
def store_statistics(stats, group, channels, cols, col_mask, count, mean, m2):
    """Write one partial row of [P, 3, C]."""
    row = stats + group.to(tl.int64) * 3 * channels + cols
    tl.store(row, count, mask=col_mask)
    tl.store(row + channels, mean, mask=col_mask)
    tl.store(row + 2 * channels, m2, mask=col_mask)
