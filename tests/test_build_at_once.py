"""Two processes that build the native code into one place at once: both end well, and what is there is whole."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import copy_sources

from effnet_fast import build

BUILD = (
    "import sys; from pathlib import Path; from effnet_fast.build import driver; root, out = map(Path, sys.argv[1:]); "
    "print(driver.build(root, out, out / 'work', ['_C'])['products']['_C']['sources'])"
)


def test_two_builds_at_once(tmp_path: Path) -> None:
    """The smallest of the libraries: each product has a lock of its own, and so has the manifest."""
    obstacle = build.diagnose("_C")
    if obstacle is not None:
        pytest.skip(obstacle.reason)
    root, out = copy_sources(tmp_path / "sources"), tmp_path / "cache"
    command = [sys.executable, "-c", BUILD, str(root), str(out)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EFFNET_FAST_")}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        said, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert said.splitlines()[-1] == build.source_hash(root, "_C")
    manifest = build.read_manifest(out)
    assert list(manifest["products"]) == ["_C"] and not manifest["missing"]
    ctypes.CDLL(str(out / manifest["products"]["_C"]["file"]))
    left = {path.name for path in out.iterdir()} - {
        manifest["products"]["_C"]["file"],
        build.MANIFEST,
        "work",
    }
    assert not left, "half-written files stay behind"
