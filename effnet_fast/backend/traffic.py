"""Counting the bytes that kernels move, from shapes: what a launch must read and write once.

Re-reads that caches serve are not counted; this is the traffic a design asks for, to be compared with the
traffic that it promises (docs/design.md) or that a profiler reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor


class Launch(NamedTuple):
    """One kernel launch."""

    kernel: str
    read: int  # bytes
    written: int  # bytes


class Traffic:
    """The launches of a ``with count_traffic()`` block, in order."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    @property
    def read(self) -> int:
        return sum(launch.read for launch in self.launches)

    @property
    def written(self) -> int:
        return sum(launch.written for launch in self.launches)

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    def by_kernel(self) -> dict[str, int]:
        """Bytes per kernel name."""
        table: dict[str, int] = {}
        for launch in self.launches:
            table[launch.kernel] = table.get(launch.kernel, 0) + launch.read + launch.written
        return table


_counters: list[Traffic] = []


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Collect every kernel launch of the block (all threads of the process).

    Example::

        with count_traffic() as traffic:
            model(x)
        print(traffic.total / 1e6, "MB")
    """
    counter = Traffic()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def counting() -> bool:
    """Whether :func:`count_traffic` collects now."""
    return bool(_counters)


def record(kernel: str, reads: Iterable[Tensor | None], writes: Iterable[Tensor | None]) -> None:
    """Called by every launcher; costs one truth test when nobody counts."""
    if _counters:
        launch = Launch(kernel, _bytes(reads), _bytes(writes))
        for counter in _counters:
            counter.launches.append(launch)


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
