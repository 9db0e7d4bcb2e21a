"""Weights rounded to the dtype a block computes in, all of them in one launch: under autocast, at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .declare import is_transformed

#: Every copy begins at a multiple of this many elements, so that kernels read it 16 bytes at a time.
_UNIT = 64


def rounded(tensors: Sequence[Tensor | None], like: Tensor) -> tuple[list[Tensor | None], Tensor]:
    """``tensors`` in the dtype of ``like``, and the memory of those that had another: one flat tensor.

    Empty where nothing was rounded, and where somebody differentiates this function: then the roundings are PyTorch's.
    """
    others = [t for t in tensors if t is not None and t.dtype != like.dtype]
    watched = torch.is_grad_enabled() and any(t.requires_grad for t in others)
    if watched or is_transformed():
        return [None if t is None else t.to(like.dtype) for t in tensors], like.new_empty(0)
    flat = like.new_empty(room_for(others, like))
    if others:
        torch._foreach_copy_(_views(flat, others), others)
    return with_copies(tensors, like, flat), flat


def with_copies(tensors: Sequence[Tensor | None], like: Tensor, flat: Tensor) -> list[Tensor | None]:
    """``tensors`` as they are or, where of another dtype than ``like``, the copies in ``flat``."""
    if not flat.numel():
        return list(tensors)
    views = iter(_views(flat, [t for t in tensors if t is not None and t.dtype != like.dtype]))
    return [t if t is None or t.dtype == like.dtype else next(views) for t in tensors]


def room_for(tensors: Sequence[Tensor | None], like: Tensor) -> int:
    """How many elements the flat tensor of :func:`rounded` has."""
    return sum(_room(t) for t in tensors if t is not None and t.dtype != like.dtype)


def _room(t: Tensor) -> int:
    return -(-t.numel() // _UNIT) * _UNIT


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    start, views = flat.storage_offset(), []
    for t in tensors:
        views.append(flat.as_strided(t.shape, t.stride(), start))
        start += _room(t)
    return views
