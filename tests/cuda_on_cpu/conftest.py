from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from . import harness, problems


@pytest.fixture(scope="session")
def plain_runner() -> Path:
    if harness.compiler() is None:
        pytest.skip("needs g++")
    return harness.build("plain")


@pytest.fixture
def solve(plain_runner: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs problems on the kernels and returns what they computed, in order."""

    def solve_all(given: Sequence[problems.Problem], **options: Any) -> list[Any]:
        return harness.run(plain_runner, [harness.case(p, **options) for p in given], tmp_path)

    return solve_all


@pytest.fixture
def check(solve: Callable[..., list[Any]]) -> Callable[..., None]:
    """Runs problems on the kernels and compares every output with the reference."""

    def check_all(given: Sequence[problems.Problem], **options: Any) -> None:
        for problem, got in zip(given, solve(given, **options), strict=True):
            problems.check(problem, got)

    return check_all
