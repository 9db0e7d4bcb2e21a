"""Triton kernels of squeeze-and-excite: both small layers of an image in one program.

``BLOCK_R`` holds all of the hidden layer (R is at most a few hundred); the channels go by in blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import activation, activation_grad, bound, dot


@triton.jit
def _mean(pooled, parts, image, channels, c, c_mask, BLOCK_P: tl.constexpr):
    """The means of an image's channels ``c``: its parts summed, always in the same order."""
    if BLOCK_P == 1:
        mean = tl.load(pooled + image * channels + c, mask=c_mask, other=0.0)
    else:
        mean = c * 0.0
        for first in range(0, parts, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            place = (image * parts + p[:, None]) * channels + c[None, :]
            mean += tl.sum(tl.load(pooled + place, mask=(p < parts)[:, None] & c_mask[None, :], other=0.0), 0)
    return mean


@triton.jit
def _hidden_layer(
    pooled,
    parts,
    w1,
    b1,
    image,
    channels,
    hidden,
    r,
    r_mask,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Pre-activation of the hidden layer, [BLOCK_R]."""
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        c_mask = c < channels
        mean = _mean(pooled, parts, image, channels, c, c_mask, BLOCK_P)
        w = tl.load(
            w1 + r[:, None] * channels + c[None, :], mask=r_mask[:, None] & c_mask[None, :], other=0.0
        )
        acc += w.to(tl.float32) * mean[None, :]
    n = tl.sum(acc, 1)
    if b1 is not None:
        n += tl.load(b1 + r, mask=r_mask, other=0.0).to(tl.float32)
    return n


@triton.jit
def _output_layer(h, w, b2, hidden, c, c_mask, r):
    """Pre-activation of the gate for the channels ``c``, given their weights ``w`` [C, R] and the hidden ``h``."""
    n = tl.sum(w * h[None, :], 1)
    if b2 is not None:
        n += tl.load(b2 + c, mask=c_mask, other=0.0).to(tl.float32)
    return n


@triton.jit
def squeeze_excite_fwd_kernel(
    pooled,  # [N, P, C], partial means
    w1,  # [R, C]
    b1,  # [R] or None
    w2,  # [C, R]
    b2,  # [C] or None
    gate,  # [N, C]
    parts,  # P
    channels,
    hidden,
    ACT: tl.constexpr,
    GATE_ACT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    r_mask = r < hidden
    n1 = _hidden_layer(pooled, parts, w1, b1, image, channels, hidden, r, r_mask, BLOCK_P, BLOCK_C, BLOCK_R)
    h = tl.where(r_mask, activation(n1, ACT), 0.0)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        c_mask = c < channels
        w = tl.load(w2 + c[:, None] * hidden + r[None, :], mask=c_mask[:, None] & r_mask[None, :], other=0.0)
        n2 = _output_layer(h, w.to(tl.float32), b2, hidden, c, c_mask, r)
        tl.store(gate + image * channels + c, activation(n2, GATE_ACT), mask=c_mask)


@triton.jit
def squeeze_excite_bwd_kernel(
    dgate,  # [N, P, C], to be summed over P
    pooled,  # [N, C]
    w1,  # [R, C]
    b1,  # [R] or None
    w2,  # [C, R]
    b2,  # [C] or None
    dpooled,  # [N, C]
    dn2,  # [N, C] gradient of the gate's pre-activation
    dn1,  # [N, R] gradient of the hidden layer's pre-activation
    h_out,  # [N, R] the hidden layer
    parts,  # P
    pool_factor,  # that dpooled is multiplied by
    channels,
    hidden,
    ACT: tl.constexpr,
    GATE_ACT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Everything of one image; the weights' gradients, sums over images, are the next kernel's."""
    image = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    r_mask = r < hidden
    n1 = _hidden_layer(pooled, 1, w1, b1, image, channels, hidden, r, r_mask, 1, BLOCK_C, BLOCK_R)
    h = tl.where(r_mask, activation(n1, ACT), 0.0)
    dh = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        c_mask = c < channels
        w = tl.load(w2 + c[:, None] * hidden + r[None, :], mask=c_mask[:, None] & r_mask[None, :], other=0.0)
        w = w.to(tl.float32)
        n2 = _output_layer(h, w, b2, hidden, c, c_mask, r)
        g = tl.zeros([BLOCK_C], tl.float32)
        for part in range(parts):
            g += tl.load(dgate + (image * parts + part) * channels + c, mask=c_mask, other=0.0)
        g = g * activation_grad(n2, GATE_ACT)
        tl.store(dn2 + image * channels + c, g, mask=c_mask)
        dh += w * g[:, None]
    g1 = tl.sum(dh, 0) * activation_grad(n1, ACT)
    g1 = tl.where(r_mask, g1, 0.0)
    tl.store(dn1 + image * hidden + r, g1, mask=r_mask)
    tl.store(h_out + image * hidden + r, h, mask=r_mask)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        c_mask = c < channels
        w = tl.load(
            w1 + r[:, None] * channels + c[None, :], mask=r_mask[:, None] & c_mask[None, :], other=0.0
        )
        mean_grad = tl.sum(w.to(tl.float32) * g1[:, None], 0) * pool_factor
        tl.store(dpooled + image * channels + c, mean_grad, mask=c_mask)


@triton.jit
def squeeze_excite_wgrad_kernel(
    pooled,  # [N, C]
    dn2,  # [N, C]
    dn1,  # [N, R]
    h,  # [N, R]
    dw1,  # [R, C]
    db1,  # [R] or None
    dw2,  # [C, R]
    db2,  # [C] or None
    images,
    channels,
    hidden,
    r_tiles,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Weight and bias gradients of a tile of channels and hidden units: sums over images in fixed order."""
    pid = tl.program_id(0)
    c_tile = pid // r_tiles
    r_tile = pid % r_tiles
    c = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    r = r_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    r_mask = r < hidden
    acc1 = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    acc2 = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    sum1 = tl.zeros([BLOCK_R], tl.float32)
    sum2 = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, images, BLOCK_I):
        i = (first + tl.arange(0, BLOCK_I)).to(tl.int64)
        i_mask = i < images
        wide = i_mask[:, None] & c_mask[None, :]
        narrow = i_mask[:, None] & r_mask[None, :]
        g2 = tl.load(dn2 + i[:, None] * channels + c[None, :], mask=wide, other=0.0)
        mean = tl.load(pooled + i[:, None] * channels + c[None, :], mask=wide, other=0.0)
        g1 = tl.load(dn1 + i[:, None] * hidden + r[None, :], mask=narrow, other=0.0)
        hid = tl.load(h + i[:, None] * hidden + r[None, :], mask=narrow, other=0.0)
        acc1 = dot(tl.trans(mean), g1, acc1, "ieee", False)
        acc2 = dot(tl.trans(g2), hid, acc2, "ieee", False)
        sum1 += tl.sum(g1, 0)
        sum2 += tl.sum(g2, 0)
    mask = c_mask[:, None] & r_mask[None, :]
    tl.store(dw1 + r[None, :] * channels + c[:, None], acc1, mask=mask)
    tl.store(dw2 + c[:, None] * hidden + r[None, :], acc2, mask=mask)
    if db1 is not None:
        tl.store(db1 + r, sum1, mask=r < bound(hidden, c_tile, 1))
    if db2 is not None:
        tl.store(db2 + c, sum2, mask=c < bound(channels, r_tile, 1))


@triton.jit
def gate_batch_norm_sums_kernel(
    sums,  # [5, N, C]
    gate,  # [N, C] or None
    pool_grad,  # [N, C] or None
    out,  # [N, 2, C]
    plane,  # N * C
    channels,
    col_tiles,
    BLOCK_N: tl.constexpr,
):
    pid = tl.program_id(0)
    image = (pid // col_tiles).to(tl.int64)
    cols = (pid % col_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = cols < channels
    row = image * channels + cols
    s2 = sums + row + plane
    g = tl.load(s2, mask=mask, other=0.0)
    g_hat = tl.load(s2 + plane, mask=mask, other=0.0)
    if gate is not None:
        s = tl.load(gate + row, mask=mask, other=0.0)
        g = g * s
        g_hat = g_hat * s
    if pool_grad is not None:
        q = tl.load(pool_grad + row, mask=mask, other=0.0)
        g += q * tl.load(s2 + plane + plane, mask=mask, other=0.0)
        g_hat += q * tl.load(s2 + plane + plane + plane, mask=mask, other=0.0)
    place = out + image * 2 * channels + cols
    tl.store(place, g, mask=mask)
    tl.store(place + channels, g_hat, mask=mask)
