"""Runs the value tests in Triton's interpreter: another process, because Triton decides at import."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "values"
TESTS = sorted(path.name for path in FOLDER.glob("test_*.py"))


def interpret(name: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        str(FOLDER / name),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[2])


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, "Future[subprocess.CompletedProcess[str]]"]]:
    """Every file's run, two at a time: the interpreter uses one core."""
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(interpret, name) for name in TESTS}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TESTS)
def test_values_in_the_interpreter(name: str, runs) -> None:
    run = runs[name].result()
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and " skipped" not in run.stdout, run.stdout[-2000:]
