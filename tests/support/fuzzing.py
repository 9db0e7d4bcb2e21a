"""How many cases a property-based test tries: a fixed number, always the same ones, or as many as a time allows.

``pytest --fuzz-seconds=1800`` (``make fuzz``) shares the time between the tests that ask for the fixture ``fuzz``;
``--fuzz-cases=8`` (``make sanitize``) has each try no more than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: Cases in one call of hypothesis where the time decides; then comes another seed.
CHUNK = 50


class Fuzzer:
    """Calls ``check(case)`` for cases of a strategy; counts them."""

    def __init__(self, seconds: float | None, most: int | None = None) -> None:
        self.seconds, self.most, self.cases = seconds, most, 0

    def __call__(self, check: Callable[[Any], None], cases: st.SearchStrategy[Any], count: int) -> None:
        """``count`` cases, or as many as the time allows; raises hypothesis' smallest failing case."""
        if self.seconds is None:
            self._run(check, cases, min(count, self.most or count), seed=None)
            return
        deadline, seed = time.monotonic() + self.seconds, 0
        while time.monotonic() < deadline:
            self._run(check, cases, CHUNK, seed=seed)
            seed += 1

    def _run(
        self, check: Callable[[Any], None], cases: st.SearchStrategy[Any], count: int, seed: int | None
    ) -> None:
        def counted(case: Any) -> None:
            self.cases += 1
            check(case)

        run = hypothesis.given(cases)(counted)
        if seed is not None:
            run = hypothesis.seed(seed)(run)
        settings(
            max_examples=count,
            derandomize=seed is None,
            database=None,
            deadline=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )(run)()
