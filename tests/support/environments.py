"""Environments and checkouts to install into, and a CUDA compiler that only answers questions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
#: What pip's isolated build environment holds, and pip itself.
ISOLATED = ("pip", "setuptools", "_distutils_hack")


def run(command: list[str | Path], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("EFFNET_FAST_", "PYTHONPATH"))}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def make_environment(folder: Path, links: tuple[str, ...]) -> Path:
    """A virtual environment with some packages of this one, linked: no network. Returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(
        run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).stdout.strip()
    )
    # The metadata folders come along: setuptools finds its own commands through their entry points.
    for path in (found for name in links for found in SITE_PACKAGES.glob(f"{name}*")):
        if path.name in links or path.suffix == ".dist-info":
            (site / path.name).symlink_to(path)
    return python


def copy_sources(target: Path) -> Path:
    """A copy of the sources, without anything built."""
    ignore = shutil.ignore_patterns("__pycache__", "lib", "*.egg-info")
    for folder in ("effnet_fast", "kernels", "csrc", "cmake"):
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    for file in ("CMakeLists.txt", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / file).exists():
            shutil.copyfile(ROOT / file, target / file)
    return target


def fake_nvcc(folder: Path, version: str) -> Path:
    """A script that answers like nvcc; the toolkit around it holds the runtime library of its version."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib64").mkdir()
    (folder / "lib64" / f"libcudart.so.{version.split('.')[0]}").touch()
    script = folder / "bin" / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'  --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;\n'
        "  --list-gpu-arch) echo compute_75 compute_80 compute_90 ;;\n"
        f"  --dryrun) echo '#$ TOP={folder}' >&2; echo '#$ INCLUDES=\"-I{folder}/include\"' >&2 ;;\n"
        "esac\n"
    )
    script.chmod(0o755)
    return script
