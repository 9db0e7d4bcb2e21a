"""No instruction that an older processor lacks outside the code that is chosen for a newer one."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from effnet_fast.backend import native

pytestmark = [
    pytest.mark.skipif(not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instructions"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump"),
]

TILES = re.compile(r"\t(tile|tdp|ldtilecfg|sttilecfg)|%tmm")
#: VEX and EVEX: every instruction since AVX but for a few on general registers, which no flag of ours allows.
AVX = re.compile(r"\tv|%[yz]mm|%k[0-7]")
AVX512 = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])\b")
DOT = re.compile(r"\t(vdpbf16ps|vcvtne2?ps2?pbf16|vcvtneps2bf16|vcvtne2ps2bf16)")


def instructions() -> Iterator[tuple[str, str]]:
    """(function, instruction)"""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(native.status("_ops").path)]
    function = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(">:\n"):
                function = line.split("<", 1)[1]
            elif "\t" in line:
                yield function, line


def test_every_instruction_is_in_its_place() -> None:
    found: dict[str, int] = dict.fromkeys(("tiles", "dot", "avx512", "avx2"), 0)
    misplaced = set()
    for function, text in instructions():
        for kind, pattern, homes in (
            ("tiles", TILES, ("::amx::",)),
            ("dot", DOT, ("::avx512bf16::",)),
            ("avx512", AVX512, ("::avx512bf16::", "::avx512::")),
            ("avx2", AVX, ("::avx512bf16::", "::avx512::", "::avx2::")),
        ):
            if pattern.search(text):
                found[kind] += 1
                if not any(f"effnet::cpu{home}" in function for home in homes):
                    misplaced.add((kind, function.strip()))
                break
    if not any(found.values()):
        pytest.skip("built without other instruction sets, or the library has no symbols")
    assert not misplaced
    kernels = native.host().build_info()["cpu_kernels"].split()
    for kind, isa in (("tiles", "amx"), ("dot", "avx512bf16"), ("avx512", "avx512"), ("avx2", "avx2")):
        assert (found[kind] > 0) == (isa in kernels), (kind, found[kind])
