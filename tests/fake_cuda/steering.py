"""What a job says to the fake device it runs on: marks in the log, counters, launches that stand in for others."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_device = ctypes.CDLL(os.environ["FAKE_CUDA_LIBRARY"])
_device.fake_launches.restype = ctypes.c_long
_device.fake_allocated.restype = ctypes.c_size_t
_device.fake_launch.argtypes = (ctypes.c_char_p, ctypes.c_void_p)

#: One launch with a name on a raw stream.
launch = _device.fake_launch
flush = _device.fake_flush
launches = _device.fake_launches


def mark(text: str) -> None:
    """What follows in the log is the part of this name; "" ends a part."""
    _device.fake_mark(text.encode())


def allocated(device: int = 0) -> int:
    """Bytes that the allocator holds of a device."""
    return int(_device.fake_allocated(device))


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but violations is logged: while host time is measured."""
    _device.fake_logging(0)
    try:
        yield
    finally:
        _device.fake_logging(1)
