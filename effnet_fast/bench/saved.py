"""Bytes that autograd keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, x: Tensor, call: Callable[[Tensor], Any] | None = None) -> int:
    """Bytes kept for the backward of ``model(x)``, besides what the model holds anyway.

    Every storage that ``torch.autograd.graph.saved_tensors_hooks`` sees counts once, parameters and buffers do not.
    Works on meta tensors, where nothing is computed.

    Args:
        call: runs in place of ``model``: a compiled or checkpointed form of it.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        # Kept, so that no later storage gets a counted one's address.
        alive.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(x) if call is None else call(x)
    del out
    return sum(sizes.values())
