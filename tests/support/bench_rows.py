"""Rows as a sweep makes them."""

from __future__ import annotations

from typing import Any

from effnet_fast.bench import results, sweep
from effnet_fast.bench.targets import Job

JOB = Job("b0", "infer", 2, 32, "fp32")


def make_row(provider: str, median: float | None, spread: float = 0.05, **changes: Any) -> results.Row:
    samples = None if median is None else [median * 1e-3 * f for f in (1 - spread, 1, 1 + spread)]
    answer = {"status": "ok", "samples": samples, "peak_memory_mb": 12.0, "max_error": 1e-6}
    if median is None:
        answer = {"status": "out of memory", "reason": "too large"}
    return {**sweep.make_row(JOB, provider, answer), **changes}
