"""Launcher of the merge of weights' gradients on Triton; meaning and signature are the reference's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import merge_kernels
from .launch import config, launch
from .runtime import ceil_div

#: Weights that one launch takes: a block's.
_AT_ONCE = 3


def merge_weight_grads(
    rows: Sequence[Tensor | None], weights: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """See :func:`effnet_fast.backend.reference.merge_weight_grads`; three weights a launch."""
    grads = [
        None
        if part is None or weight is None
        else torch.empty(weight.shape, dtype=weight.dtype, device=part.device)
        for part, weight in zip(rows, weights, strict=True)
    ]
    work = [(part, grad) for part, grad in zip(rows, grads, strict=True) if grad is not None and grad.numel()]
    for first in range(0, len(work), _AT_ONCE):
        _launch(work[first : first + _AT_ONCE])  # type: ignore[arg-type]
    return tuple(grads)


def _launch(work: list[tuple[Tensor, Tensor]]) -> None:
    meta = config("merge_weight_grads", work[0][0])
    tensors: list[Tensor | None] = []
    scalars: list[int] = []
    programs = 0
    for part, grad in work:
        count, taps, columns = part.shape
        tiles = ceil_div(taps * columns, meta["BLOCK_N"])
        tensors += [part, grad]
        scalars += [count, taps, taps * columns, tiles]
        programs += tiles
    missing = _AT_ONCE - len(work)
    launch(
        merge_kernels.merge_weight_grads_kernel,
        programs,
        (*tensors, *(None,) * (2 * missing)),
        (*scalars, *(0,) * (4 * missing))[:-1],
        reads=[part for part, _ in work],
        writes=[grad for _, grad in work],
        **meta,
    )
