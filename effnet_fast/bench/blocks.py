"""Every MBConv block of a model as plain numbers: what the shape benchmarks run and the roofline counts."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import EffnetFastError
from ..models.config import VARIANTS, canonical_name, scaled_stages


class Block(NamedTuple):
    """One MBConv block. Sizes are heights, which equal widths."""

    model: str
    stage: int  # 1 to 7
    in_channels: int
    channels: int  # of the depthwise convolution
    out_channels: int
    kernel_size: int
    stride: int
    size: int
    squeeze: int  # hidden channels of squeeze-and-excite

    @property
    def out_size(self) -> int:
        return half_up(self.size) if self.stride == 2 else self.size

    @property
    def expands(self) -> bool:
        return self.channels != self.in_channels

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def name(self) -> str:
        """For example ``b4-stage3-k5s2``; a block with a residual connection ends in ``-res``."""
        end = "-res" if self.residual else ""
        return f"{self.model}-stage{self.stage}-k{self.kernel_size}s{self.stride}{end}"


class Network(NamedTuple):
    """A model at one resolution: stem, blocks, head."""

    name: str
    resolution: int
    stem_channels: int
    stem_size: int
    blocks: tuple[Block, ...]
    head_in: int
    head_channels: int
    head_size: int


def half_up(size: int) -> int:
    """Output size of a stride of 2 with padding (k - 1) / 2."""
    return (size + 1) // 2


def network(name: str, resolution: int | None = None) -> Network:
    """The sizes of ``b0`` to ``b7``.

    Args:
        name: as :func:`effnet_fast.create` takes it.
        resolution: height and width of the images; ``None``: the model's own.

    Raises:
        UnknownModelError: another name.
        EffnetFastError: a resolution that is not a positive integer.
    """
    name = canonical_name(name)
    variant = VARIANTS[name]
    resolution = variant.resolution if resolution is None else resolution
    if not isinstance(resolution, int) or resolution < 1:
        raise EffnetFastError(f"network: resolution: expected a positive integer, got {resolution!r}")
    stages = scaled_stages(variant.width_mult, variant.depth_mult)
    stem_size = size = half_up(resolution)
    blocks = []
    for number, stage in enumerate(stages, 1):
        for repeat in range(stage.repeats):
            cin = stage.out_channels if repeat else stage.in_channels
            block = Block(
                *(name, number, cin, round(cin * stage.expand_ratio), stage.out_channels),
                *(stage.kernel_size, 1 if repeat else stage.stride, size, max(1, cin // 4)),
            )
            blocks.append(block)
            size = block.out_size
    last = stages[-1].out_channels
    return Network(name, resolution, stages[0].in_channels, stem_size, tuple(blocks), last, 4 * last, size)
