"""A network whose end no engine knows: a program as far as it goes, then the model's own layers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .check import cast
from .module import Program


class Continued:
    """A :class:`.module.Program`: another one, and after it layers in PyTorch."""

    def __init__(
        self, program: Program, keep_dims: bool, tail: tuple[nn.Module, ...], dtype: torch.dtype
    ) -> None:
        self.backend = program.backend
        self._program, self._keep_dims, self._dtype = program, keep_dims, dtype
        self._tail = cast(nn.Sequential(*copy.deepcopy(tail)).eval().requires_grad_(False), dtype)

    def run(self, x: Tensor) -> Tensor:
        y = self._program.run(x)
        if self._keep_dims:
            y = y[:, :, None, None]
        with torch.autocast("cpu", enabled=False):
            return self._tail(y.to(self._dtype)).to(y.dtype)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return ", ".join(type(layer).__name__ for layer in self._tail.children())
