"""What a device holds at most: PyTorch's allocator on CUDA, the whole process on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch


def _status_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1]) / 1e3
    return 0.0


def used_mb(device: torch.device) -> float:
    """What is in use now; on the CPU what the process has resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    return _status_mb("VmRSS")


def peak_mb(device: torch.device) -> float:
    """The most that was in use since :func:`reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return _status_mb("VmHWM")


def reset_peak(device: torch.device) -> bool:
    """Start anew to look for the peak; returns whether that worked.

    Some containers do not permit it: the peak is then that of the whole process so far, an upper bound.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def return_unused() -> None:
    """Give memory that is free but kept by the C library back, so that what is resident is in use."""
    # Only glibc has it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
