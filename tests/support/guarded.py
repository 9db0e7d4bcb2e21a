"""Tensors as views into larger buffers, in layouts that users' programs produce, with NaN all around.

A kernel that reads beside its input brings a NaN into its results; one that writes there, or into its input, changes
the buffer's bits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: How the elements of a tensor lie in memory; "expanded" only for incoming gradients.
LAYOUTS = ("dense", "channels_last", "sliced", "permuted", "expanded")
GUARD = 67  # elements, more than the widest vector load


class Guarded(NamedTuple):
    """A view and the buffer it lies in, with the buffer's bits as they were."""

    view: Tensor
    buffer: Tensor
    before: Tensor

    def check(self, name: str) -> None:
        """Assert that nothing was written, into the view or beside it."""
        assert torch.equal(bits(self.buffer), self.before), (
            f"{name}: its memory or the memory beside it changed"
        )


def bits(t: Tensor) -> Tensor:
    """The tensor's bits as integers, so that NaN equals NaN."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return t.detach().view(kinds[t.element_size()]).clone()


def _axes(layout: str, dims: int, rng: random.Random) -> list[int]:
    """Dimensions from the outermost to the innermost in memory."""
    order = list(range(dims))
    if layout == "channels_last" and dims == 4:
        return [0, 2, 3, 1]
    if layout in ("permuted", "sliced"):
        rng.shuffle(order)
    return order


def guarded(values: Tensor, layout: str, offset: int, rng: random.Random) -> Guarded:
    """``values`` as a view of that layout, ``offset`` elements after a 64-byte boundary.

    Args:
        values: floating, any shape.
        layout: one of :data:`LAYOUTS`.
        offset: elements by which the first one is displaced: pointers need not be aligned.
        rng: for the order of the dimensions and the gaps between elements.
    """
    shape = list(values.shape)
    order = _axes(layout, len(shape), rng)
    gaps = [rng.choice((1, 1, 2, 3)) if layout == "sliced" else 1 for _ in shape]
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step * gaps[axis]
        step *= max(1, shape[axis] * gaps[axis])
    if layout == "expanded" and len(shape) > 1:
        # One value for a whole dimension, as the gradient of a sum is.
        axis = rng.randrange(len(shape))
        strides[axis] = 0
        values = values.select(axis, 0).unsqueeze(axis).expand(shape) if shape[axis] else values
    start = 64 + offset
    buffer = values.new_full((start + max(step, math.prod(shape)) + GUARD,), float("nan"))
    view = buffer.as_strided(shape, strides, buffer.storage_offset() + start)
    if values.numel():
        view.copy_(values) if layout != "expanded" else _copy_once(view, values, strides)
    return Guarded(view, buffer, bits(buffer))


def _copy_once(view: Tensor, values: Tensor, strides: Sequence[int]) -> None:
    """Copying into a view that names an element twice is refused: take each once."""
    for axis, stride in enumerate(strides):
        if stride == 0:
            view, values = view.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
    view.copy_(values)
