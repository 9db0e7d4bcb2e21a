"""A pytest plugin: the tests run on AMX, whose instructions an emulator executes (amx_emulator.cpp).

The library is the one that ships. It asks Linux for the tiles only once, and the answer it keeps is overwritten here.
"""

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from effnet_fast.backend import native

ANSWER = "effnet::cpu::(anonymous namespace)::may_use_amx()::granted"


def _grant() -> None:
    path = str(native.status("_ops").path)
    symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    (offset,) = re.findall(rf"^([0-9a-f]+) b {re.escape(ANSWER)}$", symbols, re.MULTILINE)
    with open("/proc/self/maps") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path))
    ctypes.c_bool.from_address(base + int(offset, 16)).value = True


@pytest.fixture(scope="session", autouse=True)
def emulated() -> Iterator[None]:
    """AMX by emulation; at the end something was multiplied by it, and no thread kept its tiles."""
    emulator = ctypes.CDLL(os.environ["AMX_EMULATOR"])
    emulator.amx_products.restype = emulator.amx_threads.restype = ctypes.c_long
    # Makes it ask.
    native.ops().cpu_isa(len(native.ISAS) - 1)
    _grant()
    emulator.amx_emulate()
    assert native.ISAS[native.ops().cpu_isa(len(native.ISAS) - 1)] == "amx"
    yield
    assert emulator.amx_products() > 0
    assert emulator.amx_threads() == 0
