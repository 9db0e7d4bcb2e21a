"""Weights in the order the engine's kernels read them; the formats are those of ``csrc/cpu/engine/network.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..inference.network import Conv
from .entry_points import NUMBER

#: Number of the formats below, in pickled programs: to be raised with every change of them, or of ``units.py``.
LAYOUT = 1
#: Channels are padded with zeros to a multiple of this.
GROUP = 16
#: A panel of a matrix has at most this many groups of columns.
PANEL_GROUPS = 3


def padded(t: Tensor, size: int, dim: int = 0) -> Tensor:
    """``t`` with zeros up to ``size`` along ``dim``."""
    if t.shape[dim] == size:
        return t
    shape = list(t.shape)
    shape[dim] = size - t.shape[dim]
    return torch.cat((t, t.new_zeros(shape)), dim)


def huge_pages(size: int) -> Tensor:
    """Bytes in large pages where the system has them, not initialised."""
    memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    native.ops().prefer_huge_pages(memory)
    return memory


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class Packer:
    """Collects packed tensors; each method returns the numbers of one record."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._parts: list[Tensor] = []
        self._offset = 0

    def buffer(self) -> Tensor:
        """Everything that was packed, as bytes; parts begin at multiples of 64."""
        buffer = huge_pages(self._offset).zero_()
        offset = 0
        for part in self._parts:
            buffer[offset : offset + part.numel()] = part
            offset += round_up(part.numel(), 64)
        return buffer

    def nothing(self) -> list[int]:
        """The record of a convolution that is not there."""
        return [0] * 12

    def no_linear(self) -> list[int]:
        return [0] * 5

    def conv(self, conv: Conv) -> list[int]:
        """A dense convolution, k x k or 1x1."""
        weight = conv.weight.detach().float()
        even = 1 if self.dtype == torch.float32 else 2
        # [O, k, k, I]: pixels of a row side by side, as the input has them.
        rows = padded(weight.permute(0, 2, 3, 1), round_up(weight.shape[1], even), 3).flatten(1)
        return self._record(conv, weight.shape[1], self._matrix(rows))

    def depthwise(self, conv: Conv) -> list[int]:
        channels, _, kernel, _ = conv.weight.shape
        taps = padded(
            conv.weight.detach().float().reshape(channels, kernel * kernel), round_up(channels, GROUP)
        )
        grouped = taps.reshape(-1, GROUP, kernel * kernel).transpose(1, 2)
        return self._record(conv, channels, self._add(grouped))

    def linear(self, weight: Tensor, bias: Tensor, act: str = "none") -> list[int]:
        outputs, inputs = weight.shape
        rows = padded(weight.detach().float(), round_up(outputs, GROUP))
        packed = self._add(rows.reshape(-1, GROUP, inputs).transpose(1, 2).to(self.dtype))
        return [inputs, outputs, NUMBER[act], packed, self._vector(bias)]

    def _record(self, conv: Conv, inputs: int, packed: int) -> list[int]:
        padding = (0, 0, 0, 0) if conv.padding == "same" else conv.padding
        return [
            *(inputs, conv.weight.shape[0], conv.weight.shape[2], conv.stride, int(conv.padding == "same")),
            *(*padding, NUMBER[conv.act], packed, self._vector(conv.bias)),
        ]

    def _matrix(self, weight: Tensor) -> int:
        """[O, K] in panels."""
        outputs, depth = weight.shape
        rows = padded(weight, round_up(outputs, GROUP)).t()
        if self.dtype == torch.bfloat16:
            pairs = padded(rows.to(self.dtype), round_up(depth, 2)).reshape(-1, 2, rows.shape[1])
            rows = pairs.permute(0, 2, 1)
        groups = rows.shape[1] // GROUP
        panels = -(-groups // PANEL_GROUPS)
        widths = [groups // panels + (i < groups % panels) for i in range(panels)]
        parts = rows.split([width * GROUP for width in widths], dim=1)
        return self._add(torch.cat([part.reshape(-1) for part in parts]))

    def _vector(self, bias: Tensor) -> int:
        return self._add(padded(bias.detach().float(), round_up(len(bias), GROUP)))

    def _add(self, t: Tensor) -> int:
        part = t.contiguous().flatten().view(torch.uint8)
        self._parts.append(part)
        offset = self._offset
        self._offset += round_up(part.numel(), 64)
        return offset
