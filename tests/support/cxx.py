"""Compiles sources of csrc/ with a test's own into a program, kept in build/ until one of them changes."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


def build(name: str, sources: Sequence[Path], flags: Sequence[str], compiler: str = "g++") -> Path:
    """The program or library ``name``; skips the test without the compiler, fails it where the sources don't compile."""
    command = compiler.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    digest = hashlib.sha256(" ".join([*command, *flags, *map(str, sources)]).encode())
    for path in sorted(
        {*sources, *CSRC.glob("common/*.h"), *CSRC.glob("cpu/*/*.h"), *ROOT.glob("tests/cpu_kernels/*.h")}
    ):
        digest.update(path.read_bytes())
    target = ROOT / "build" / "cpu_tests" / f"{name}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    common = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]

    def call(arguments: Sequence[str]) -> None:
        done = subprocess.run([*command, *common, *flags, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        # Files of the same name may lie in several folders.
        objects = [str(Path(folder) / f"{index}_{path.stem}.o") for index, path in enumerate(sources)]
        list(
            pool.map(
                lambda pair: call(["-c", str(pair[0]), "-o", pair[1]]), zip(sources, objects, strict=True)
            )
        )
        call([*objects, "-o", str(partial)])
    partial.rename(target)
    return target
