"""pytest plugin of scripts/sanitize.py: the package loads the library of SANITIZED_LIBRARY; what ran is counted."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ["SANITIZED_LIBRARY"])


def pytest_configure(config: pytest.Config) -> None:
    from effnet_fast import native
    from effnet_fast.build import driver

    driver.LIBRARY_FOLDER = FOLDER
    found = native.status("_ops")
    assert found.loaded and found.path == FOLDER / "_ops.so", found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    preloaded = ctypes.CDLL(str(FOLDER / "parallel_for.so"))
    counts = []
    for name in ("regions", "parts"):
        function = getattr(preloaded, f"effnet_sanitized_{name}")
        function.restype = ctypes.c_int64
        counts.append(function())
    terminalreporter.write_line(f"{counts[0]} parallel regions in {counts[1]} parts ran instrumented")
    assert counts[0], "nothing ran in the instrumented library"
