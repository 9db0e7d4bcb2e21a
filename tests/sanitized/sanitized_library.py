"""pytest plugin of scripts/sanitize.py: the package loads the library of SANITIZED_LIBRARY; what ran is counted."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ["SANITIZED_LIBRARY"])


def pytest_configure(config: pytest.Config) -> None:
    from effnet_fast.backend import native
    from effnet_fast.build import driver

    driver.LIBRARY_FOLDER = FOLDER
    found = native.status("_ops")
    assert found.loaded and found.path == FOLDER / "_ops.so", found
    # Tests of a set that the library lacks are skipped: nobody would see that it was meant to be there.
    widest, wanted = native.ISAS[native.ops().cpu_isa(len(native.ISAS) - 1)], os.environ["SANITIZED_ISA"]
    assert widest == wanted or f"{wanted}f" not in Path("/proc/cpuinfo").read_text(), widest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    preloaded = ctypes.CDLL(str(FOLDER / "parallel_for.so"))
    counts = []
    for name in ("regions", "parts"):
        function = getattr(preloaded, f"effnet_sanitized_{name}")
        function.restype = ctypes.c_int64
        counts.append(function())
    terminalreporter.write_line(f"{counts[0]} parallel regions in {counts[1]} parts ran instrumented")
    assert counts[0], "nothing ran in the instrumented library"
