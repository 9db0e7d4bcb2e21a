"""The distinct shapes of B0 to B7 that the suites run, named after the first block that has them.

    python benchmarks/shapes.py b0 b4

``b4-stage3-k5s2`` is the block with stride 2 that opens B4's third stage; ``b4-stage3-k5s1-res`` is the block,
repeated, that follows it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

from effnet_fast.bench.blocks import Block, network
from effnet_fast.models import list_models


class Shape(NamedTuple):
    """What one operation needs to know; sizes are heights, which equal widths."""

    name: str
    block: Block  # where it occurs
    in_channels: int
    out_channels: int
    size: int
    kernel_size: int = 1
    stride: int = 1


def _depthwise(name: str) -> Iterable[Shape]:
    for b in network(name).blocks:
        yield Shape(b.name, b, b.channels, b.channels, b.size, b.kernel_size, b.stride)


def _pointwise(name: str) -> Iterable[Shape]:
    for b in network(name).blocks:
        if b.expands:
            yield Shape(f"{b.name}-expand", b, b.in_channels, b.channels, b.size)
        yield Shape(f"{b.name}-project", b, b.channels, b.out_channels, b.out_size)


def _squeeze_excite(name: str) -> Iterable[Shape]:
    for b in network(name).blocks:
        yield Shape(f"{b.name}-se", b, b.channels, b.squeeze, 1)


def _mbconv(name: str) -> Iterable[Shape]:
    for b in network(name).blocks:
        yield Shape(b.name, b, b.in_channels, b.out_channels, b.size, b.kernel_size, b.stride)


_KINDS = {
    "depthwise": _depthwise,
    "pointwise": _pointwise,
    "squeeze_excite": _squeeze_excite,
    "mbconv": _mbconv,
}


def shapes(kind: str, models: Iterable[str] = ()) -> list[Shape]:
    """The shapes of one kind, without repetitions.

    Args:
        kind: ``depthwise``, ``pointwise``, ``squeeze_excite`` or ``mbconv``.
        models: ``b0`` to ``b7``; none: all of them.
    """
    found: dict[tuple[object, ...], Shape] = {}
    for model in models or list_models():
        for shape in _KINDS[kind](model):
            # Blocks differ by what they compute, not by where they are.
            block = tuple(shape.block[2:]) if kind == "mbconv" else ()
            found.setdefault((shape[2:], block), shape)
    return list(found.values())


if __name__ == "__main__":
    for kind in _KINDS:
        for shape in shapes(kind, sys.argv[1:]):
            channels = f"{shape.in_channels} -> {shape.out_channels}"
            print(f"{kind:15} {shape.name:32} {channels:13} {shape.size:4} x {shape.size}")
