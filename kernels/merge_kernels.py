"""Triton kernel that ends a backward: the parts of up to three weights' gradients, summed and rounded in one launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _merge(rows, grad, count, taps, inner, tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """``grad[m * taps + t]`` is the sum over ``count`` rows of [t, m], always in the same order."""
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < inner
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, count, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        mask = (row < count)[:, None] & col_mask[None, :]
        acc += tl.load(rows + row[:, None].to(tl.int64) * inner + cols[None, :], mask=mask, other=0.0)
    columns = inner // taps
    place = cols % columns * taps + cols // columns
    tl.store(grad + place, tl.sum(acc, 0).to(grad.dtype.element_ty), mask=col_mask)


@triton.jit
def merge_weight_grads_kernel(
    rows1,  # [count1, taps1, inner1 / taps1]
    grad1,  # [inner1]
    rows2,  # or None
    grad2,
    rows3,
    grad3,
    count1,
    taps1,
    inner1,
    tiles1,
    count2,
    taps2,
    inner2,
    tiles2,
    count3,
    taps3,
    inner3,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < tiles1:
        _merge(rows1, grad1, count1, taps1, inner1, pid, BLOCK_M, BLOCK_N)
    # Nested, because what is absent must not even be compiled.
    if rows2 is not None:  # noqa: SIM102
        if (pid >= tiles1) & (pid < tiles1 + tiles2):
            _merge(rows2, grad2, count2, taps2, inner2, pid - tiles1, BLOCK_M, BLOCK_N)
    if rows3 is not None:  # noqa: SIM102
        if pid >= tiles1 + tiles2:
            _merge(rows3, grad3, count3, taps3, inner3, pid - tiles1 - tiles2, BLOCK_M, BLOCK_N)
