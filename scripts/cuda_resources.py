"""Registers, spills, shared memory, occupancy and 16-byte loads of the CUDA C++ kernels, from the compiled library.

Usage: python scripts/cuda_resources.py [LIBRARY] [--write docs/kernels/cuda_resources.md]

Checks them against csrc/cuda/budgets.json and ends with status 1 if one is exceeded. Needs cuobjdump and nvdisasm, which Triton's
package carries; no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = ROOT / "csrc" / "cuda" / "budgets.json"
REGISTERS_OF_A_MULTIPROCESSOR = 65536
#: From compute capability 9.0 on, CUDA keeps 1 KB of each block's shared memory for itself.
RESERVED_SHARED_BYTES = 1024
#: Architectures whose instructions are read; the others' registers and spills are.
DISASSEMBLED = ("sm_80", "sm_90")

_STORAGE = {"f": "fp32", "6__half": "fp16", "13__nv_bfloat16": "bf16"}
_DEPTHWISE = re.compile(r"depthwise_(fwd|bwd)_kernel.*DepthwiseTraitsI(\w+?)Li(\d)ELi(\d)E")
_SQUEEZE = re.compile(r"squeeze_excite_(fwd|bwd)_kernelI(f|6__half|13__nv_bfloat16)(?:Li(\d)ELi(\d)E)?")


class Kernel(NamedTuple):
    """One kernel on one architecture."""

    arch: str
    family: str  # what budgets are kept for
    storage: str
    registers: int
    local_bytes: int  # stack, that is, spills
    shared_bytes: int  # static, without what the system reserves; the launchers ask for the rest


def find_tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: on PATH, or in Triton's package."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if carried.is_file():
            return str(carried)
    return shutil.which(name)


def _identify(symbol: str) -> tuple[str, str] | None:
    """(family, storage) of a mangled kernel name."""
    if match := _DEPTHWISE.search(symbol):
        direction, storage, kernel, stride = match.groups()
        return f"depthwise_{direction} k{kernel} s{stride}", _STORAGE[storage]
    if match := _SQUEEZE.search(symbol):
        direction, storage, images, _ = match.groups()
        suffix = f" {images} images" if images else ""
        return f"squeeze_excite_{direction}{suffix}", _STORAGE[storage]
    if "merge_rows_kernel" in symbol:
        return "merge_rows", "fp32"
    return None


def _cuobjdump(library: Path, *options: str) -> str:
    tool = find_tool("cuobjdump")
    if tool is None:
        raise SystemExit(
            "cuda_resources: cuobjdump not found; pip install triton, or a CUDA toolkit with binary utilities"
        )
    environment = {**os.environ, "PATH": f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [tool, *options, str(library)], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def resources(library: Path) -> list[Kernel]:
    """Every kernel of the library on every architecture it has machine code for."""
    kernels = []
    arch = name = ""
    for line in _cuobjdump(library, "--dump-resource-usage").splitlines():
        if match := re.search(r"arch = (sm_\d+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\S+):", line):
            name = match[1]
        elif (match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line)) and (
            identity := _identify(name)
        ):
            registers, stack, shared = map(int, match.groups())
            if int(arch[3:]) >= 90:
                shared -= RESERVED_SHARED_BYTES
            kernels.append(Kernel(arch, *identity, registers, stack, shared))
    return sorted(set(kernels))


def wide_loads(library: Path, arch: str) -> dict[tuple[str, str], int]:
    """(family, storage) -> 16-byte loads from global memory in the machine code, asynchronous copies included."""
    counts: dict[tuple[str, str], int] = {}
    identity = None
    for line in _cuobjdump(library, "--dump-sass", "--gpu-architecture", arch).splitlines():
        if match := re.search(r"Function : (\S+)", line):
            identity = _identify(match[1])
            if identity is not None:
                counts[identity] = 0
        elif identity is not None and re.search(r"\b(LDGSTS|LDG)\.E\S*\.128", line):
            counts[identity] += 1
    return counts


def violations(kernels: list[Kernel], loads: dict[str, dict[tuple[str, str], int]]) -> Iterator[str]:
    """What exceeds budgets.json, one line each."""
    budgets = json.loads(BUDGETS.read_text())
    seen = {kernel.family for kernel in kernels}
    for family in sorted(set(budgets) ^ seen):
        yield f"{family}: {'no such kernel in the library' if family in budgets else 'no budget in budgets.json'}"
    for kernel in kernels:
        budget = budgets.get(kernel.family)
        if budget is None:
            continue
        where = f"{kernel.family} {kernel.storage} {kernel.arch}"
        if kernel.registers > budget["registers"]:
            yield f"{where}: {kernel.registers} registers, at most {budget['registers']}"
        if kernel.local_bytes > budget["local_bytes"]:
            yield f"{where}: {kernel.local_bytes} bytes of stack, at most {budget['local_bytes']}"
        if kernel.shared_bytes > budget["shared_bytes"]:
            yield f"{where}: {kernel.shared_bytes} bytes of static shared memory, at most {budget['shared_bytes']}"
    for arch, counts in loads.items():
        for (family, storage), count in sorted(counts.items()):
            least = budgets.get(family, {}).get("wide_loads", 0)
            if count < least:
                yield f"{family} {storage} {arch}: {count} 16-byte loads, at least {least}"


def compiler(library: Path) -> str:
    """The version of nvcc that built a library, from the manifest beside it; "" where there is none."""
    manifest = library.with_name("build.json")
    if not manifest.is_file():
        return ""
    return str(json.loads(manifest.read_text())["products"].get("_cuda", {}).get("nvcc", ""))


def loads_of(library: Path, kernels: list[Kernel]) -> dict[str, dict[tuple[str, str], int]]:
    """:func:`wide_loads` of the architectures whose instructions are read, where the library has them."""
    present = {kernel.arch for kernel in kernels}
    return {arch: wide_loads(library, arch) for arch in DISASSEMBLED if arch in present}


def table(kernels: list[Kernel], loads: dict[str, dict[tuple[str, str], int]], nvcc: str) -> str:
    """A markdown table: a row per kernel, registers per architecture."""
    archs = sorted({kernel.arch for kernel in kernels}, key=lambda arch: int(arch[3:]))
    lines = [
        "# CUDA kernels: resources",
        "",
        "Written by `python scripts/cuda_resources.py --write docs/kernels/cuda_resources.md` from the library as nvcc",
        f"{nvcc} compiles it; `tests/test_cuda_build.py` compares this page with the library, and the library with",
        "`csrc/cuda/budgets.json`. Threads a multiprocessor: by registers, of 2048; shared memory depends on the plan. No kernel has",
        "a stack frame, that is, none spills.",
        "",
        f"| kernel | storage | {' | '.join(f'registers {arch}' for arch in archs)} | threads sm_90 | 16-byte loads sm_90 |",
        "|---|---|" + "---|" * (len(archs) + 2),
    ]
    by_name: dict[tuple[str, str], dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault((kernel.family, kernel.storage), {})[kernel.arch] = kernel
    for (family, storage), variants in by_name.items():
        registers = " | ".join(str(variants[arch].registers) if arch in variants else "-" for arch in archs)
        threads = wide = "-"
        if "sm_90" in variants:
            allocated = -(-variants["sm_90"].registers // 8) * 8
            threads = str(min(2048, REGISTERS_OF_A_MULTIPROCESSOR // allocated // 32 * 32))
        if "sm_90" in loads:
            wide = str(loads["sm_90"].get((family, storage), 0))
        lines.append(f"| {family} | {storage} | {registers} | {threads} | {wide} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("library", nargs="?", type=Path, default=ROOT / "effnet_fast" / "lib" / "_cuda.so")
    parser.add_argument("--write", type=Path, help="also write the table as markdown")
    arguments = parser.parse_args()
    if not arguments.library.is_file():
        raise SystemExit(f"cuda_resources: {arguments.library} not found; build it with `make build`")
    kernels = resources(arguments.library)
    loads = loads_of(arguments.library, kernels)
    if arguments.write:
        arguments.write.write_text(table(kernels, loads, compiler(arguments.library)))
    found = list(violations(kernels, loads))
    archs = ", ".join(sorted({kernel.arch for kernel in kernels}))
    print("\n".join(found) or f"{len(kernels)} kernels on {archs}: all within budget")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
