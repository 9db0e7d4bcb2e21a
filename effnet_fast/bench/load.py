"""Who else is at work on this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")

#: What other work does to a comparison: the threads of an OpenMP team wait for the slowest at every operation.
CONSEQUENCE = "PyTorch's threads then wait for each other, and both times and speed-ups can be larger than on an idle machine"
#: Cores in use by others from which on it is said.
NOTEWORTHY = 0.25


class Others:
    """Measures from its construction on how many cores other processes use, on the average."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """Cores in use by others since then; ``None`` where the system does not tell."""
        busy, own = _busy_seconds(), _own_seconds()
        if busy is None or self._busy is None:
            return None
        return max(0.0, busy - self._busy - (own - self._own)) / (time.perf_counter() - self._began)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float | None:
    """Processor time of all processes since the machine started."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, STAT.read_text().split("\n", 1)[0].split()[1:])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
