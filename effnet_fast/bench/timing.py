"""Timing one callable: device events and a cold second-level cache on CUDA, the wall clock on the CPU.

The method: warm up first, then time single calls on random data, and keep every sample, so that the caller can
give a median and a spread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], Any]

#: Zeroed before each timed call on CUDA; several times the largest L2 (60 MB on Hopper, 126 MB on Blackwell).
FLUSH_BYTES = 256 * 2**20


class Clock:
    """Seconds of timed work so far; :meth:`run` adds one call's time. Calling the clock reads it.

    So it can be the ``timer`` of pytest-benchmark, which then sees exactly what the device measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.now = 0.0
        self._flush: torch.Tensor | None = None

    def __call__(self) -> float:
        return self.now

    def run(self, step: Step) -> float:
        """Run ``step`` once; returns its seconds."""
        seconds = self._on_cuda(step) if self.device.type == "cuda" else self._on_cpu(step)
        self.now += seconds
        return seconds

    @staticmethod
    def _on_cpu(step: Step) -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    def _on_cuda(self, step: Step) -> float:
        if self._flush is None:
            self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The flush also keeps the device busy while the launches of a short step are queued behind it.
        self._flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def warm_up(step: Step, clock: Clock, seconds: float = 0.05, calls: int = 3) -> float:
    """Run ``step`` at least ``calls`` times and for ``seconds``; returns the fastest call, in seconds."""
    # The first call compiles, loads modules and chooses algorithms: it says nothing about the others.
    clock.run(step)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < calls or (time.perf_counter() - started < seconds and len(times) < 1000):
        times.append(clock.run(step))
        if time.perf_counter() - started > 20 * seconds and len(times) >= 2:
            break
    return min(times)


def rounds_for(one: float, seconds: float, least: int = 5, most: int = 300) -> int:
    """How many calls of ``one`` second each fit into ``seconds``, within limits."""
    return max(least, min(most, int(seconds / max(one, 1e-7))))


def calls_in(one: float, seconds: float) -> int:
    """How many calls of ``one`` second each make a turn of about ``seconds``: at least five, three of slow ones."""
    return rounds_for(one, seconds, 5 if one < seconds else 3)


def sample(step: Step, clock: Clock, seconds: float) -> list[float]:
    """Times of single calls, in seconds, as many as :func:`calls_in` says."""
    first = clock.run(step)
    return [first] + [clock.run(step) for _ in range(calls_in(first, seconds) - 1)]


def copy_bandwidth(device: torch.device, megabytes: int | None = None) -> float:
    """Bytes per second, read plus written, of copying a large tensor: what a perfect kernel could reach."""
    megabytes = megabytes or (1024 if device.type == "cuda" else 128)
    source = torch.randint(0, 255, (megabytes * 2**20 // 8,), dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    times = _times(lambda: target.copy_(source), device)
    return 2.0 * source.numel() * 8 / _fast_quartile(times)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Floating point operations per second of a large square matrix product."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    times = _times(lambda: torch.mm(a, b), device)
    return 2.0 * size**3 / _fast_quartile(times)


def _times(step: Step, device: torch.device) -> list[float]:
    clock = Clock(device)
    warm_up(step, clock)
    return [clock.run(step) for _ in range(20)]


def _fast_quartile(times: list[float]) -> float:
    """The lower quartile: a ceiling should not contain other people's work."""
    ordered = sorted(times)
    return ordered[len(ordered) // 4]
