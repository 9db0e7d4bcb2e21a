"""Importing: from where, at what cost, and what it must not touch."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from environments import ROOT, copy_sources, run

from effnet_fast import build


def test_kernels_is_not_importable_from_the_repository_root(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", "import kernels"], ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: this folder is effnet_fast.kernels")
    assert run([sys.executable, "-c", "import effnet_fast.kernels"], tmp_path).returncode == 0


def test_import_does_not_touch_cuda(tmp_path: Path) -> None:
    """Neither initialisation nor a device query: both end in one of these functions."""
    code = """
import os, torch
def refuse(*args, **kwargs):
    raise AssertionError("import touched CUDA")
torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda.is_available = torch.cuda.device_count = refuse
import effnet_fast, effnet_fast.kernels
from effnet_fast import build
from effnet_fast.backend import native
for product in build.PRODUCTS:
    native.status(product)
effnet_fast.backends("cpu")
assert not torch.cuda.is_initialized()
opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]
assert not [path for path in opened if path.startswith("/dev/nvidia")], opened
"""
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


def test_import_costs_what_torch_costs(tmp_path: Path) -> None:
    """Processor time, because wall-clock time is the machine's; a tenth of a second is what it takes."""
    code = """
import sys, time
import torch
began = time.process_time()
import effnet_fast
imported = time.process_time()
from effnet_fast.cli import main
assert main(["--help"]) == 0
heavy = {"torch._dynamo", "torch._inductor", "sympy", "triton", "matplotlib", "torchvision", "timm"} & set(sys.modules)
print(imported - began, time.process_time() - imported, *heavy, file=sys.stderr)
"""
    done = run([sys.executable, "-c", code], tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0 and "usage: effnet-fast" in done.stdout, done.stderr
    own, helping, *heavy = done.stderr.split()
    assert float(own) < 0.8 and float(own) + float(helping) < 1, done.stderr
    assert heavy == []


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("tree") / "sources")


IMPORT = "import effnet_fast, effnet_fast.kernels.runtime as r; print(effnet_fast.__file__, r.__file__)"


def test_a_source_tree_that_is_not_built_says_what_helps(source_tree: Path) -> None:
    """It comes before the package that is installed here, and is not one mixed from both."""
    done = run([sys.executable, "-c", IMPORT], source_tree)
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(source_tree) for file in done.stdout.split()), done.stdout
    assert done.stderr.startswith("<string>:1: UserWarning: effnet_fast: imported from the source tree ")
    assert f"{source_tree}, for which no native libraries are built" in done.stderr
    assert f"`{sys.executable} -m effnet_fast build`" in done.stderr and done.stderr.count("\n") == 1
    # It has been said: patching does not say it again.
    done = run([sys.executable, "-c", "import effnet_fast; effnet_fast.b0()"], source_tree)
    assert (done.returncode, done.stderr.count("Warning")) == (0, 1), done.stderr


def test_the_command_that_helps_says_nothing_of_it(source_tree: Path) -> None:
    done = run([sys.executable, "-m", "effnet_fast", "build", "nonsense"], source_tree)
    assert done.returncode == 2 and done.stderr.startswith("effnet-fast: error: build: unknown product")


@pytest.mark.parametrize(
    "way", [["-c", "from effnet_fast.cli import main; main(['info'])"], ["-m", "effnet_fast", "info"]]
)
def test_a_source_tree_finds_the_libraries_that_are_installed(
    source_tree: Path, tmp_path: Path, way: list[str]
) -> None:
    """As after ``pip install .``: in that folder Python finds ./effnet_fast first."""
    site = tmp_path / "site" / "effnet_fast"
    shutil.copytree(source_tree / "effnet_fast", site)
    (site / "lib").symlink_to(build.LIBRARY_FOLDER)
    done = run([sys.executable, *way], source_tree, PYTHONPATH=str(site.parent))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f"({source_tree}/effnet_fast)" in done.stdout
    assert re.search(rf"_ops +loaded, {site}/lib/_ops", done.stdout), done.stdout
    # Libraries of other sources are not taken; the sentence names the package that has them.
    other = tmp_path / "other"
    shutil.copytree(source_tree, other)
    (other / "csrc" / "library.cpp").write_text("// changed\n")
    done = run([sys.executable, "-c", "import effnet_fast"], other, PYTHONPATH=str(site.parent))
    assert f"or leave this folder: the installed package is in {site}" in done.stderr


def test_an_editable_install_is_silent_in_its_folder() -> None:
    done = run([sys.executable, "-c", IMPORT], ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(ROOT / "effnet_fast/__init__.py"), str(ROOT / "kernels/runtime.py")]
