"""A module around another one, as libraries put around a layer of somebody's model."""

from __future__ import annotations

from typing import Any

from torch import nn

#: By which the output of what is wrapped is multiplied, so that ignoring the wrapper shows.
SCALE = 1.25


class Wrapped(nn.Module):
    """Shows the attributes of what it wraps, as adapters of fine-tuning libraries and quantizers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) * SCALE
