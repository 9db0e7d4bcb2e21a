"""Every Triton kernel x configuration x dtype compiles for every architecture, without a GPU, and well.

Shared memory within the architecture's limit, no spills, tensor-core instructions in the GEMMs, 16-byte reads.
"""

import multiprocessing
import runpy
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from effnet_fast.kernels import configs
from effnet_fast.kernels.runtime import INTERPRET
from triton_offline import coverage
from triton_offline.compiler import Report
from triton_offline.matrix import ARCHITECTURES, DOTS, Job, Result, jobs, judge, run

pytestmark = pytest.mark.skipif(INTERPRET, reason="interpreted kernels cannot be compiled")


@pytest.fixture(scope="module")
def pool():
    # Compiling is almost all outside Python and one core each.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as workers:
        yield workers


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernel", coverage.CASES)
def test_compiles(kernel: str, pool: ProcessPoolExecutor) -> None:
    results: list[Result] = [result for batch in pool.map(run, list(jobs(kernel))) for result in batch]
    assert {result.job.capability for result in results} == set(ARCHITECTURES)
    bad = [result for result in results if result.problem]
    assert not bad, "\n".join(
        f"sm_{r.job.capability} {r.job.dtype} {r.variant} {r.config}: {r.problem}" for r in bad
    )


def test_the_page_is_of_these_kernels() -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "triton_compile_table.py"
    table = runpy.run_path(str(script))
    fresh = f"Sources {table['digest']()}." in table["PAGE"].read_text()
    assert fresh, f"{table['PAGE']} is stale: python {script}"


def test_every_kernel_of_the_table_is_covered() -> None:
    assert set(coverage.CASES) == set(configs.TABLE)
    assert {"pointwise_fwd", "pointwise_dgrad", "pointwise_wgrad", "pointwise_backward"} == DOTS


def test_judgement_can_fail() -> None:
    job = Job("pointwise_fwd", torch.float16, 90, 0, False)
    good = Report(1 << 10, 64, 0, "wgmma", 4)
    assert judge(job, good) == ""
    assert "shared memory" in judge(job, good._replace(shared=1 << 20))
    assert "spilled" in judge(job, good._replace(spills=4))
    assert "tensor-core" in judge(job, good._replace(tensor_core=""))
    assert "16-byte" in judge(job, good._replace(wide_loads=0))
