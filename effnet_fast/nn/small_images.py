"""Small images with gradients and frozen statistics, on the CPU: there PyTorch's modules are faster, and run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import dispatch
from ..errors import UnsupportedBlockError
from .parts import ConvBN, ConvLayerParts, MBConvParts, batch_statistics

#: Values of a block's widest tensor below which they are: a block's kernels cost 0.1 to 0.3 ms more to call, and less for
#: every value.
SMALL = 2**16


def _layers(parts: MBConvParts | ConvLayerParts) -> list[ConvBN]:
    if isinstance(parts, ConvLayerParts):
        return [parts.layer]
    return [part for part in (parts.expand, parts.depthwise, parts.project) if part is not None]


def _channels(parts: MBConvParts | ConvLayerParts) -> tuple[int, int]:
    """Of the input and, at its resolution, of the widest tensor."""
    conv = _layers(parts)[0].conv
    outputs = conv.out_channels if isinstance(parts, ConvLayerParts) else parts.depthwise.conv.in_channels
    return conv.in_channels, max(conv.in_channels, outputs)


def check_worth(x: Tensor, parts: MBConvParts | ConvLayerParts) -> None:
    """Asked in a call with gradients before anything is prepared, because that is time lost too.

    Raises:
        UnsupportedBlockError: the images are small.
    """
    if not x.is_cpu or x.dim() != 4 or torch.compiler.is_compiling():
        return
    inputs, channels = _channels(parts)
    if x.numel() * channels >= SMALL * inputs:
        return
    if any(batch_statistics(part.bn) for part in _layers(parts)) or dispatch.chosen_by_user():
        return
    raise UnsupportedBlockError(
        "its images are small: with gradients and frozen statistics its own modules are faster"
    )


class Smallness(NamedTuple):
    """:func:`check_worth` of a block as it was read, for later calls.

    The block may have changed since, and is not compared with what it was, which takes ten times as long: where this
    says that images are small the block's own modules run, and they are right whatever the block is now.
    """

    inputs: int
    channels: int
    #: Where the convolutions keep their parameters.
    convs: tuple[dict[str, nn.Parameter | None], ...]

    @staticmethod
    def of(parts: MBConvParts | ConvLayerParts) -> Smallness | None:
        """``None`` where statistics are not frozen in eval mode either."""
        if any(part.bn.running_mean is None for part in _layers(parts)):
            return None
        return Smallness(*_channels(parts), tuple(part.conv._parameters for part in _layers(parts)))

    def is_sure(self, x: Tensor) -> bool:
        """Whether images like ``x`` are small for the block, which is in eval mode."""
        return (
            torch.is_grad_enabled()
            and type(x) is Tensor
            and x.is_cpu
            and torch._C._get_tracing_state() is None
            and x.numel() * self.channels < SMALL * self.inputs
            and (x.requires_grad or self._learns())
            and not dispatch.chosen_by_user()
        )

    def _learns(self) -> bool:
        for parameters in self.convs:
            weight = parameters.get("weight")
            if weight is not None and weight.requires_grad:
                return True
        return False
