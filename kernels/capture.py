"""Kernels that are first needed while a CUDA graph is captured."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

#: CU_STREAM_CAPTURE_MODE_RELAXED of the CUDA driver API.
_RELAXED = 2


@contextmanager
def loading() -> Iterator[None]:
    """Within the block this thread may load modules, which a capture forbids to threads in their usual mode.

    Loading allocates and belongs to no stream, so it is not part of what is captured; PyTorch's allocator asks for memory
    during a capture in the same way. The mode is the thread's (CUDA driver API, cuThreadExchangeStreamCaptureMode).
    """
    exchange = _driver().cuThreadExchangeStreamCaptureMode
    mode = ctypes.c_int(_RELAXED)
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


def capturing() -> bool:
    """Whether the current stream of the current GPU is being captured."""
    return bool(torch._C._cuda_isCurrentStreamCapturing())


@cache
def _driver() -> Any:
    # Loaded already by whoever has a GPU; this finds it.
    return ctypes.CDLL("libcuda.so.1")
