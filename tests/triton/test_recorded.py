"""The launches of B0 to B7 at batch 1, 32 and 256 compile without spills or stack; a sample always, all in make test-full."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

from effnet_fast.kernels import configs
from effnet_fast.kernels.runtime import INTERPRET
from triton_offline import recorded

pytestmark = pytest.mark.skipif(INTERPRET, reason="interpreted kernels cannot be compiled")

#: Everything there is but a kernel that SyncBatchNorm alone launches.
LAUNCHED = set(configs.TABLE) - {"gate_batch_norm_sums"}

#: What has been gone through at these sizes: the architecture that the tiles are chosen for, whole, and of others the dtype
#: that is used there. sm_100 and sm_120 have some bytes left (docs/design.md, section 7).
GONE_THROUGH = (
    *((90, dtype) for dtype in recorded.DTYPES),
    (80, torch.bfloat16),
    (75, torch.float16),
)

# What the workers of a pool inherit: launches hold jit functions, which do not pickle.
_cases: list[recorded.Case] = []


def _problem(arguments: tuple[int, int]) -> str:
    number, capability = arguments
    return recorded.problem(_cases[number], capability)[1]


@pytest.mark.slow
def test_sample_has_no_stack() -> None:
    """Of every kernel what B0 launches at batch 256 in bf16."""
    heaviest = {case.launch.name: case for case in recorded.cases(90, ("b0",), (256,), (torch.bfloat16,))}
    assert set(heaviest) == LAUNCHED
    bad = [recorded.problem(case, 90)[1] for case in heaviest.values()]
    assert not any(bad), "\n".join(filter(None, bad))


@pytest.mark.full
@pytest.mark.timeout(0)
@pytest.mark.parametrize("capability, dtype", GONE_THROUGH, ids=str)
def test_nothing_has_a_stack(capability: int, dtype: torch.dtype) -> None:
    _cases[:] = recorded.cases(capability, dtypes=(dtype,))
    jobs = [(number, capability) for number in range(len(_cases))]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        bad = [problem for problem in pool.map(_problem, jobs) if problem]
    assert not bad, f"{len(bad)} of {len(jobs)}\n" + "\n".join(bad)


def test_recording_sees_what_sizes_do() -> None:
    """Batch 1 makes other code than batch 256, an architecture's own configurations are used, both ways are there."""
    one, many = (recorded.cases(90, ("b0",), (batch,), (torch.bfloat16,)) for batch in (1, 256))
    assert {case.launch.name for case in many} == LAUNCHED
    names = [case.launch.name for case in recorded.cases(90, ("b0",), (1, 256), (torch.bfloat16,))]
    assert len(names) > max(len(one), len(many))
    turing = recorded.cases(75, ("b0",), (1,), (torch.float16,))
    hopper = recorded.cases(90, ("b0",), (1,), (torch.float16,))
    assert {str(case.launch.meta) for case in turing} != {str(case.launch.meta) for case in hopper}
    assert not recorded.cases(75, ("b0",), (1,), (torch.bfloat16,))
