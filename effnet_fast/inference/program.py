"""What runs a folded network: a program as far as an engine knows it, then the model's own layers."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import dispatch
from .check import cast
from .folded import Folded


class Program(Protocol):
    """A network made ready to run; safe to be called from several threads at once."""

    #: What runs it.
    backend: str

    def run(self, x: Tensor) -> Tensor:
        """Images [N, Cin, H, W], fp32 or bf16, any strides -> logits or features, bf16 if ``x`` is, else fp32."""


class Continued:
    """Another program, whose pooled features become [N, C, 1, 1] if asked, and after it layers in PyTorch."""

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
        if not self._tail:
            return y
        with torch.autocast("cpu", enabled=False):
            return self._tail(y.to(self._dtype)).to(y.dtype)  # type: ignore[no-any-return]


def program_of(folded: Folded) -> Program:
    """The native program where its library is built, else PyTorch's convolutions; ``use_backend`` decides as for ops.

    Raises:
        BackendError: the backends chosen by the user cannot run it.
        UnsupportedBlockError: a layer that the program has no form of.
    """
    choice = dispatch.choose("compile_network", torch.device("cpu"), folded.dtype)
    program: Program = choice.function(folded.network, folded.dtype)
    if not folded.tail and not folded.keep_dims:
        return program
    return Continued(program, folded.keep_dims, folded.tail, folded.dtype)
