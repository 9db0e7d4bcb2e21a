"""Every kernel x configuration x dtype x architecture, compiled offline and judged.

tests/triton/test_compile_matrix.py asserts it, scripts/triton_compile_table.py writes it down.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from effnet_fast.kernels import configs

from triton_offline import coverage
from triton_offline.compiler import SHARED_LIMIT, Report, compile_launch

ARCHITECTURES = tuple(SHARED_LIMIT)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: The 1x1 convolution's kernels, whose dots belong on tensor cores.
DOTS = frozenset(kernel for kernel in coverage.CASES if kernel.startswith("pointwise"))


class Job(NamedTuple):
    """One configuration of one kernel; ``everything`` compiles all its variants, else the heaviest alone."""

    kernel: str
    dtype: torch.dtype
    capability: int
    index: int
    everything: bool


class Result(NamedTuple):
    """A compiled variant and what is wrong with it ("" if nothing)."""

    job: Job
    variant: str
    config: configs.Config
    report: Report | None
    problem: str


def jobs(kernel: str, everything: bool = False) -> Iterator[Job]:
    """What there is to compile of a kernel; all variants for sm_90, for the others ``everything`` or the heaviest."""
    for dtype in DTYPES:
        if kernel in coverage.VECTOR_KERNELS and dtype != torch.float32:
            continue
        for capability in ARCHITECTURES:
            if capability == 75 and dtype == torch.bfloat16:
                continue
            for index in range(len(configs.rows(kernel, dtype, f"sm_{capability}"))):
                yield Job(kernel, dtype, capability, index, everything or capability == 90)


def run(job: Job) -> list[Result]:
    """Compile one job; for a process pool."""
    # Whatever the user's cache holds must not stand in for this compiler.
    os.environ.setdefault("TRITON_ALWAYS_COMPILE", "1")
    config = configs.rows(job.kernel, job.dtype, f"sm_{job.capability}")[job.index]
    results = []
    for variant, launch in coverage.launches(job.kernel, job.dtype, config):
        try:
            report = compile_launch(launch, job.capability)
            results.append(Result(job, variant, config, report, judge(job, report)))
        except Exception as error:  # A compiler fails in many ways; each is a finding, not the end.
            results.append(Result(job, variant, config, None, f"does not compile: {error!r}"[:500]))
        if not job.everything:
            break
    return results


def judge(job: Job, report: Report) -> str:
    """What is wrong with a compiled kernel, or ""."""
    wrong = []
    if report.shared > SHARED_LIMIT[job.capability]:
        wrong.append(f"{report.shared} bytes of shared memory, the limit is {SHARED_LIMIT[job.capability]}")
    if report.spills > 0:
        wrong.append(f"{report.spills} bytes spilled")
    # Triton has no tensor-core instruction for sm_75, and exact float32 has none anywhere.
    if job.kernel in DOTS and job.dtype != torch.float32 and job.capability > 75 and not report.tensor_core:
        wrong.append("no tensor-core instruction")
    if job.kernel not in coverage.VECTOR_KERNELS and report.wide_loads == 0:
        wrong.append("no 16-byte global read")
    return "; ".join(wrong)
