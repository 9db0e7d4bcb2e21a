"""Small images with gradients, on the CPU: there PyTorch's modules are faster, and run."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import dispatch
from ..errors import UnsupportedBlockError
from ..ops.declare import made_by_our_op
from .observed import saved_by_others
from .parts import ConvLayerParts, MBConvParts, layers_of, uses_batch_statistics

#: Values of a block's widest tensor up to which one or two images are. A block costs more to call, and less for every value.
SMALL_BLOCK = 3 * 2**15
#: The same for stem and head, which gain little: PyTorch's backward of a wide 1x1 convolution is faster than ours.
SMALL_LAYER = 2**20


class SmallImagesError(UnsupportedBlockError):
    """A block's images are small."""


def _most_values(parts: MBConvParts | ConvLayerParts) -> int:
    """Of the input, while the widest tensor at its resolution is small."""
    conv, layer = layers_of(parts)[0].conv, isinstance(parts, ConvLayerParts)
    outputs = conv.out_channels if layer else parts.depthwise.conv.in_channels  # type: ignore[union-attr]
    small = SMALL_LAYER if layer else SMALL_BLOCK
    # Attributes are whatever somebody has written there, 0 included.
    return small * conv.in_channels // max(conv.in_channels, outputs, 1)


def _counts_once() -> bool:
    """Whether modules may be trained: not under gradient checkpointing, where they would count a batch twice, nor beside
    other processes, for which :class:`torch.nn.SyncBatchNorm` waits and whose images may be large."""
    return not saved_by_others() and not (dist.is_available() and dist.is_initialized())


def check_worth(x: Tensor, parts: MBConvParts | ConvLayerParts) -> None:
    """Asked in a call with gradients before anything is prepared, because that is time lost too.

    Raises:
        SmallImagesError: the images are small.
    """
    if not x.is_cpu or x.dim() != 4 or torch.compiler.is_compiling():
        return
    # Of many images fewer values are small, because PyTorch's depthwise convolutions cost something for each image.
    if x.numel() * max(1, x.shape[0] // 2) ** 2 > _most_values(parts):
        return
    if dispatch.chosen_by_user() or not torch.is_grad_enabled():
        return
    if not uses_batch_statistics(parts) or _counts_once():
        raise SmallImagesError("its images are small: with gradients its own modules are faster")


def as_modules_like_it(x: Tensor) -> Tensor:
    """``x`` for PyTorch's modules: what our ops made is channels_last, with which their backwards take up to twice as long."""
    return x.contiguous() if made_by_our_op(x) else x


class Smallness(NamedTuple):
    """:func:`check_worth` of a block as it was read, for later calls.

    The block may have changed since, and is not compared with what it was, which takes ten times as long: where this
    says that images are small the block's own modules run, and they are right whatever the block is now.
    """

    most_values: int
    #: Where the convolutions keep their parameters.
    convs: tuple[dict[str, nn.Parameter | None], ...]
    #: Whether statistics are the batch's in eval mode too.
    always_batch: bool

    @staticmethod
    def of(parts: MBConvParts | ConvLayerParts) -> Smallness:
        layers = layers_of(parts)
        batch = any(part.bn.running_mean is None for part in layers)
        return Smallness(_most_values(parts), tuple(part.conv._parameters for part in layers), batch)

    def is_sure(self, x: Tensor, training: bool) -> bool:
        """Whether images like ``x`` are small for the block, in training or eval mode."""
        # In one function: between two convolutions everything has left the caches, and each call costs microseconds.
        values, most = x.numel(), self.most_values
        if values > most or type(x) is not Tensor or not x.is_cpu or not torch.is_grad_enabled():
            return False
        if x.dim() != 4 or values * max(1, x.shape[0] // 2) ** 2 > most or dispatch.chosen_by_user():
            return False
        if training or self.always_batch:
            return _counts_once()
        if x.requires_grad:
            return True
        for parameters in self.convs:
            weight = parameters.get("weight")
            if weight is not None and weight.requires_grad:
                return True
        return False
