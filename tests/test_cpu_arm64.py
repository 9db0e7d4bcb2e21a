"""The kernels of inference in plain C++: for arm64 (NEON) under an emulator, and for this machine under AddressSanitizer.

The driver compares products, depthwise convolutions and whole small networks with plain loops in fp64.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cxx import CSRC, ROOT, build

KERNELS = (
    *("engine/item_kernel", "engine/expand_depthwise_kernel", "engine/stem_kernel", "engine/vectors_kernel"),
    *("gemm/multiply_kernel", "gemm/pack_kernel", "stencil/forward_kernel"),
)
#: What they need besides: plans, and which instruction set there is.
OTHERS = (
    "stencil/forward",
    "engine/compile",
    "engine/plan",
    "engine/program",
    "engine/steps",
    "gemm/multiply_amx",
    "isa/isa",
)
SOURCES = [
    *(CSRC / "cpu" / f"{name}.cpp" for name in (*KERNELS, *OTHERS)),
    ROOT / "tests" / "cpu_kernels" / "plain_driver.cpp",
]


def arm64() -> tuple[Path, list[str]]:
    """The driver for arm64, and the command that runs it."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs qemu-aarch64 (Debian: apt install qemu-user)")
    flags = ["-O2", "-static", "-DEFFNET_ISA=baseline"]
    if shutil.which("aarch64-linux-gnu-g++"):
        return build("plain_arm64", SOURCES, flags, "aarch64-linux-gnu-g++"), [emulator]
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip(
            "needs aarch64-linux-gnu-g++ (Debian: apt install g++-aarch64-linux-gnu) or PyPI's ziglang"
        )
    compiler = f"{sys.executable} -m ziglang c++ -target aarch64-linux-musl"
    return build("plain_arm64_zig", SOURCES, flags, compiler), [emulator]


def here() -> tuple[Path, list[str]]:
    flags = ["-O0", "-g1", "-DEFFNET_ISA=baseline", "-fsanitize=address,undefined"]
    return build("plain", SOURCES, [*flags, "-fno-sanitize-recover=undefined"]), []


@pytest.mark.parametrize("target", ["arm64", "here"])
def test_kernels_against_plain_loops(target: str) -> None:
    program, emulator = arm64() if target == "arm64" else here()

    def run(argument: str) -> subprocess.CompletedProcess[str]:
        command = [*emulator, str(program), argument]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = run("1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert done.stdout.startswith("0 of 254 comparisons failed")
    # Expecting a network with another weight, it must complain, and only of the networks.
    done = run("wrong")
    assert done.returncode == 1 and done.stdout.rstrip().splitlines()[-1].startswith("7 of 254"), done.stdout
    if platform.machine() in ("x86_64", "aarch64") or target == "arm64":
        assert done.stdout.rstrip().endswith("4 lanes")
