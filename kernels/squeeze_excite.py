"""Launchers of squeeze-and-excite on Triton; meaning and signatures are the reference's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import SqueezeExciteGrad
from . import squeeze_excite_kernels
from .launch import config, launch, sum_partials, vector_like
from .runtime import ceil_div


def squeeze_excite(
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
) -> Tensor:
    """See :func:`effnet_fast.backend.reference.squeeze_excite`; a hidden layer of up to 1024."""
    n, channels = pooled.shape[0], pooled.shape[-1]
    parts = 1 if pooled.dim() == 2 else pooled.shape[1]
    hidden = w1.shape[0]
    gate = vector_like(pooled, n, channels)
    if gate.numel() == 0:
        return gate
    launch(
        squeeze_excite_kernels.squeeze_excite_fwd_kernel,
        n,
        (pooled, w1, b1, w2, b2, gate),
        (parts, channels, hidden),
        reads=[pooled, w1, b1, w2, b2],
        writes=[gate],
        ACT=act,
        GATE_ACT=gate_act,
        BLOCK_P=1 if parts == 1 else 8,
        **config("squeeze_excite_fwd", pooled, hidden),
    )
    return gate


def squeeze_excite_backward(
    dgate: Tensor,
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
    area: int = 1,
) -> SqueezeExciteGrad:
    """See :func:`effnet_fast.backend.reference.squeeze_excite_backward`; a hidden layer of up to 1024."""
    n, channels = pooled.shape
    parts = dgate.shape[1] if dgate.dim() == 3 else 1
    hidden = w1.shape[0]
    dpooled = torch.empty_like(pooled)
    dw1, dw2 = (t.new_empty(t.shape) for t in (w1, w2))
    db1, db2 = (None if t is None else t.new_empty(t.shape) for t in (b1, b2))
    dn2 = vector_like(pooled, n, channels)
    dn1, h = vector_like(pooled, n, hidden), vector_like(pooled, n, hidden)
    if n > 0:
        launch(
            squeeze_excite_kernels.squeeze_excite_bwd_kernel,
            n,
            (dgate, pooled, w1, b1, w2, b2, dpooled, dn2, dn1, h),
            (parts, 1.0 / area, channels, hidden),
            reads=[dgate, pooled, w1, b1, w2, b2],
            writes=[dpooled, dn2, dn1, h],
            ACT=act,
            GATE_ACT=gate_act,
            **config("squeeze_excite_bwd", pooled, hidden),
        )
    meta = config("squeeze_excite_wgrad", pooled, hidden)
    tiles = ceil_div(hidden, meta["BLOCK_R"])
    # With no images this writes zeros.
    launch(
        squeeze_excite_kernels.squeeze_excite_wgrad_kernel,
        ceil_div(channels, meta["BLOCK_C"]) * tiles,
        (pooled, dn2, dn1, h, dw1, db1, dw2, db2),
        (n, channels, hidden, tiles),
        reads=[pooled, dn2, dn1, h],
        writes=[dw1, db1, dw2, db2],
        **meta,
    )
    return SqueezeExciteGrad(dpooled, dw1, db1, dw2, db2)


def gate_batch_norm_sums(sums: Tensor, gate: Tensor | None, pool_grad: Tensor | None) -> Tensor:
    """See :func:`effnet_fast.backend.reference.gate_batch_norm_sums`."""
    n, channels = sums.shape[1], sums.shape[-1]
    if sums.dim() == 4:
        sums = sum_partials(sums.view(5 * n, -1, channels)).view(5, n, channels)
    out = vector_like(sums, n, 2, channels)
    if out.numel() == 0:
        return out
    meta = config("gate_batch_norm_sums", sums)
    tiles = ceil_div(channels, meta["BLOCK_N"])
    launch(
        squeeze_excite_kernels.gate_batch_norm_sums_kernel,
        n * tiles,
        (sums, gate, pool_grad, out),
        (n * channels, channels, tiles),
        reads=[sums[1:5] if pool_grad is not None else sums[1:3], gate, pool_grad],
        writes=[out],
        **meta,
    )
    return out
