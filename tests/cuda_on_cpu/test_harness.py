"""The harness must see what it is there to see: kernels broken on purpose are caught."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from . import harness, problems

# The faults are in the forward; leaving out the backward halves the time to compile.
NO_BACKWARD = """#pragma once
#include "launch.cuh"
namespace effnet::cuda {
template <class T>
cudaError_t launch_depthwise_backward(DepthwiseBackwardParams, cudaStream_t) {
  return cudaErrorInvalidValue;
}
}  // namespace effnet::cuda
"""


class Fault(NamedTuple):
    flavour: str
    file: str
    correct: str
    broken: str
    report: str  # what the sanitizer says; empty where the values are wrong instead


FAULTS = {
    "a barrier is missing": Fault(
        "thread",
        "depthwise_fwd.cuh",
        "    __pipeline_wait_prior(kStages - 2);\n    __syncthreads();\n    if (image_done",
        "    __pipeline_wait_prior(kStages - 2);\n    if (image_done",
        "data race",
    ),
    "the halo is one column short": Fault(
        "address",
        "planner.h",
        "p.strips * columns_per_thread(s.kernel) * s.stride + s.kernel - s.stride;",
        "p.strips * columns_per_thread(s.kernel) * s.stride + s.kernel - s.stride - 1;",
        "",
    ),
    "a row is read one pixel too far": Fault(
        "address",
        "depthwise_traits.cuh",
        "if (static_cast<unsigned>(column) >= static_cast<unsigned>(columns)) continue;",
        "if (static_cast<unsigned>(column) > static_cast<unsigned>(columns)) continue;",
        "heap-buffer-overflow",
    ),
    "a copy is not waited for": Fault(
        "plain",
        "depthwise_fwd.cuh",
        "    __pipeline_wait_prior(kStages - 2);\n    __syncthreads();\n    if (image_done",
        "    __pipeline_wait_prior(kStages);\n    __syncthreads();\n    if (image_done",
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, tmp_path: Path) -> None:
    if harness.compiler() is None:
        pytest.skip("needs g++")
    fault = FAULTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(harness.CSRC, csrc)
    path = csrc / "cuda" / fault.file
    text = path.read_text()
    assert text.count(fault.correct) == 1, "the kernel changed: this fault has to be put in elsewhere"
    path.write_text(text.replace(fault.correct, fault.broken))
    (csrc / "cuda" / "depthwise_bwd_launch.cuh").write_text(NO_BACKWARD)
    runner = harness.build(fault.flavour, csrc)

    # The last strip is full and ends in padding, the first starts without.
    problem = problems.depthwise(torch.float32, 3, 1, (2, 8, 7, 9), (0, 1, 1, 1))
    cases = [harness.case(problem)]
    done = harness.run(runner, cases, tmp_path, check=False)
    if fault.report:
        assert done.returncode != 0
        assert fault.report in done.stderr
        return
    if done.returncode == 0:
        with pytest.raises(AssertionError, match="error"):
            problems.check(problem, harness.run(runner, cases, tmp_path)[0])
