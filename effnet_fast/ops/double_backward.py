"""Gradients of gradients: the reference of an op, differentiated where its fused backward cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Originals:
    """An op's inputs, without keeping alive what its formula does not keep.

    Large tensors are among those that the formula saves; the small ones that it does not are kept as they are.
    """

    def __init__(self, inputs: Sequence[Any], saved: dict[int, int], unneeded: tuple[int, ...]) -> None:
        self._saved = saved
        self._kept = list(inputs)
        for place in saved:
            self._kept[place] = None
        self._shapes: dict[int, tuple[Any, ...]] = {}
        for place in unneeded:
            t, self._kept[place] = inputs[place], None
            if t is not None:
                self._shapes[place] = (t.shape, t.dtype, t.device)
        self._versions = [_version(t) for t in self._kept]

    def restore(self, saved_tensors: Sequence[Tensor | None]) -> list[Any]:
        """The inputs in their order.

        Raises:
            RuntimeError: one was changed in place since the forward, as PyTorch raises for tensors that it saves.
        """
        if [_version(t) for t in self._kept] != self._versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                "a parameter or a buffer of a BatchNorm changed between the forward and a backward with create_graph=True"
            )
        inputs = list(self._kept)
        for place, index in self._saved.items():
            inputs[place] = saved_tensors[index]
        for place, (shape, dtype, device) in self._shapes.items():
            inputs[place] = torch.zeros((), dtype=dtype, device=device).expand(shape).requires_grad_()
        return inputs


def _version(value: Any) -> int | None:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def reference_gradients(
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of ``reference(*inputs)`` for what its outputs received, themselves differentiable.

    Args:
        reference: made of PyTorch's operations.
        inputs: as the op received them, part of the graph they came from.
        needed: which inputs' gradients are wanted.
        grads: one for each output, ``None`` for those that received nothing.
    """
    # Aliases, because one input may have been computed from another: w, and x = f(w).
    aliases = [t.view_as(t) if isinstance(t, Tensor) and t.requires_grad else t for t in inputs]
    wanted = [place for place, t in enumerate(aliases) if needed[place] and isinstance(t, Tensor)]
    outputs = reference(*aliases)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [
        (out, grad)
        for out, grad in zip(outputs, grads, strict=True)
        if grad is not None and out.requires_grad
    ]
    found: list[Tensor | None] = [None] * len(inputs)
    if not pairs or not wanted:
        return found
    received, given = zip(*pairs, strict=True)
    derivatives = torch.autograd.grad(
        received, [aliases[place] for place in wanted], given, create_graph=True, allow_unused=True
    )
    for place, derivative in zip(wanted, derivatives, strict=True):
        found[place] = derivative
    return found
