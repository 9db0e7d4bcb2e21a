"""The compiled CUDA library against its budgets: registers, no spills, 16-byte loads. No GPU is needed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from effnet_fast.backend import native

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "cuda_resources.py"
PAGE = ROOT / "docs" / "kernels" / "cuda_resources.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_resources", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def library(script: ModuleType) -> Path:
    state = native.status("_cuda")
    if state.path is None or not state.loaded:
        pytest.skip(f"the CUDA library is not built: {state.reason}")
    if script.find_tool("cuobjdump") is None:
        pytest.skip("needs cuobjdump, which Triton's package carries")
    return state.path


@pytest.mark.slow
def test_within_budget(script: ModuleType, library: Path) -> None:
    kernels = script.resources(library)
    assert not list(script.violations(kernels, script.loads_of(library, kernels)))


@pytest.mark.slow
def test_the_page_is_of_this_library(script: ModuleType, library: Path) -> None:
    page = PAGE.read_text()
    nvcc = script.compiler(library)
    if f"nvcc\n{nvcc} compiles" not in page:
        pytest.skip(f"the page is of another nvcc than {nvcc}")
    kernels = script.resources(library)
    if not set(re.findall(r"registers (sm_\d+)", page)) <= {kernel.arch for kernel in kernels}:
        pytest.skip("the library is not for every architecture of the page")
    assert script.table(kernels, script.loads_of(library, kernels), nvcc) == page, (
        f"stale: python scripts/cuda_resources.py --write {PAGE}"
    )


def test_every_template_is_there(script: ModuleType, library: Path) -> None:
    """18 depthwise templates each way, squeeze-and-excite for three weight types, the merge; nothing else."""
    kernels = script.resources(library)
    for arch in {kernel.arch for kernel in kernels}:
        families = [kernel.family for kernel in kernels if kernel.arch == arch]
        assert sum(family.startswith("depthwise_fwd") for family in families) == 18
        assert sum(family.startswith("depthwise_bwd") for family in families) == 18
        assert sum(family.startswith("squeeze_excite") for family in families) == 9
        assert families.count("merge_rows") == 1


def test_violations_are_found(script: ModuleType) -> None:
    fat = script.Kernel("sm_90", "depthwise_fwd k3 s1", "fp32", 255, 8, 0)
    found = "\n".join(script.violations([fat], {"sm_90": {("depthwise_fwd k3 s1", "fp32"): 0}}))
    for part in ("255 registers", "8 bytes of stack", "0 16-byte loads", "merge_rows: no such kernel"):
        assert part in found
