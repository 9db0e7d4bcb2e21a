"""The vectorized exponential behind SiLU and sigmoid is as exact in a build that is hardly optimized (make sanitize)."""

from __future__ import annotations

import platform
import subprocess

import cxx
import pytest

FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instructions")
@pytest.mark.parametrize("optimized", ["-O1", "-O3"])
def test_exponential(isa: str, optimized: str) -> None:
    """No compiler has to contract a product and a sum: one that did not gave errors of 4.2e-6."""
    if isa not in FLAGS:
        pytest.skip(f"{isa} computes as avx512 does")
    source = cxx.ROOT / "tests" / "cpu_kernels" / "exponential_driver.cpp"
    flags = [*FLAGS[isa], optimized, "-ffp-contract=off", f"-DEFFNET_ISA={isa}"]
    driver = cxx.build(f"exponential_{isa}", [source], flags)
    done = subprocess.run([driver], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5e-7
