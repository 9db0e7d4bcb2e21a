from __future__ import annotations

from collections.abc import Iterator

import pytest

from effnet_fast.backend import native

from . import build
from .process import Device


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    """Two fake GPUs of compute capability 9.0; the process is shared by all tests."""
    reason = build.missing() or native.available("_cuda")[1]
    if reason:
        pytest.skip(reason)
    with Device(devices=2) as process:
        yield process
