"""The product on AMX tiles, executed: by the processor, or where it lacks them by an emulator of its instructions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cxx import CSRC, ROOT, build

from effnet_fast.backend import native

pytestmark = [
    pytest.mark.skipif(not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"),
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="AMX is used on x86-64 Linux"
    ),
]

HERE = Path(__file__).resolve().parent
EMULATOR = HERE / "cpu_kernels" / "amx_emulator.cpp"


def assembles_amx(tmp_path: Path) -> bool:
    source = tmp_path / "tile.s"
    source.write_text("tdpbf16ps %tmm2, %tmm1, %tmm0\n")
    command = ["g++", "-c", str(source), "-o", str(tmp_path / "tile.o")]
    return shutil.which("g++") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """The shipped source of the product, under AddressSanitizer: operands have exactly their size."""
    if not assembles_amx(tmp_path):
        pytest.skip("needs a g++ whose assembler knows AMX")
    sources = [CSRC / "cpu" / "gemm" / "multiply_amx.cpp", CSRC / "cpu" / "gemm" / "multiply_kernel.cpp"]
    flags = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags += ["-DEFFNET_ISA=baseline", "-DEFFNET_HAVE_AMX=1"]
    return build("amx", [*sources, EMULATOR, HERE / "cpu_kernels" / "amx_driver.cpp"], flags)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=300)


def test_random_products(driver: Path) -> None:
    """Against fp64 (twice the error without tiles), the same bits in every block, nothing beside the operands."""
    done = run(driver, "1", "250")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert int(done.stdout.split("two sizes of steps in ")[1]) > 20


def test_a_wrong_remainder_is_noticed(driver: Path) -> None:
    done = run(driver, "wrong")
    assert done.returncode == 1 and "wrong numbers" in done.stdout


def test_the_build_has_amx_where_the_assembler_knows_it(tmp_path: Path) -> None:
    kernels = native.host().build_info()["cpu_kernels"].split()
    assert ("amx" in kernels) == ("avx512bf16" in kernels and assembles_amx(tmp_path))


def test_the_engine_on_emulated_tiles() -> None:
    """tests/test_cpu_engine.py and test_cpu_block.py on the library as it ships, in a process of their own."""
    features, kernels = native.host().cpu_features(), native.host().build_info()["cpu_kernels"].split()
    if features["amx_bf16"]:
        pytest.skip("this processor has AMX: tests/test_cpu_engine.py runs on it")
    if "amx" not in kernels or native.ISAS[native.ops().cpu_isa(len(native.ISAS) - 1)] != "avx512bf16":
        pytest.skip("everything but the tiles is the avx512bf16 kernels'")
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    emulator = build("amx_emulator.so", [EMULATOR], ["-O2", "-shared", "-fPIC"])
    chosen = "(random and amx and dtype1) or (same_bits and dtype1)"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "amx_emulated",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
    ]
    files = [str(HERE / "test_cpu_engine.py"), str(HERE / "test_cpu_block.py")]
    paths = os.pathsep.join([str(HERE / "cpu_kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "AMX_EMULATOR": str(emulator), "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert re.search(r"\b3 passed, \d+ deselected", done.stdout), done.stdout[-2000:]


def test_asking_for_more_than_there_is() -> None:
    """What the processor has is used, and works; the environment and the op say the same."""
    code = (
        "import torch, effnet_fast; from effnet_fast.backend import native\n"
        "print(native.cpu_isa(), native.ISAS[native.ops().cpu_isa(native.ISAS.index('amx'))])\n"
        "fast = effnet_fast.optimize(effnet_fast.b0(num_classes=3).eval(), (1, 3, 33, 40), dtype=torch.bfloat16)\n"
        "assert fast(torch.randn(1, 3, 33, 40)).isfinite().all()"
    )
    environment = {**os.environ, "EFFNET_FAST_CPU_ISA": "amx"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    best = native.ops().cpu_isa(len(native.ISAS) - 1)
    assert done.stdout.split() == 2 * [native.ISAS[best]]
