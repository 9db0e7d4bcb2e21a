"""Finds what the native build needs, or says what is missing and which command adds it.

Only the standard library, and nothing is imported to find it: this also runs while the package is being
installed, when torch may be absent and must not be loaded.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

#: Oldest torch whose stable ABI has what we use; CMake's EFFNET_TORCH_TARGET is the same number.
MINIMUM_TORCH = (2, 11)


class MissingTool(Exception):
    """Something the build needs is not there; ``fix`` is the command that adds it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


Found = TypeVar("Found")


class Search:
    """Looks for one tool after another, so that all those that are missing are named at once."""

    def __init__(self) -> None:
        self.missing: list[MissingTool] = []

    def find(self, finder: Callable[[], Found]) -> Found | None:
        """What ``finder`` returns, or ``None`` where it raised :class:`MissingTool`."""
        try:
            return finder()
        except MissingTool as missing:
            self.missing.append(missing)
            return None

    def finish(self) -> None:
        """Raises one :class:`MissingTool` for all that was not found."""
        if self.missing:
            raise merged(self.missing)


def merged(several: Sequence[MissingTool]) -> MissingTool:
    """One for all: the reasons in a row, what pip adds in one command and what apt adds in another."""
    packages: dict[str, dict[str, None]] = {"pip install": {}, "apt install": {}}
    others: dict[str, None] = {}
    for fix in (part for missing in several for part in missing.fix.split(" && ") if part):
        tool = next((tool for tool in packages if fix.startswith(f"{tool} ")), None)
        words = shlex.split(fix)[2:] if tool else []
        if tool is None or any(word.startswith("-") for word in words):
            others[fix] = None
        else:
            packages[tool].update(dict.fromkeys(words))
    commands = [
        f"{tool} {' '.join(map(shlex.quote, names))}" for tool, names in reversed(packages.items()) if names
    ]
    reasons = dict.fromkeys(part for missing in several for part in missing.reason.split("; "))
    return MissingTool("; ".join(reasons), " && ".join([*commands, *others]))


@dataclass(frozen=True)
class Torch:
    """A torch installation, as read from its files."""

    root: Path
    version: str
    cuda: str | None

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler that fits the installed torch."""

    path: Path
    version: str
    include: tuple[Path, ...]
    runtime: Path  # libcudart.so.<major>


def is_set(variable: str) -> bool:
    """Whether an environment switch is on (anything but empty, 0, false, off, no)."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "off", "no")


def find_program(*names: str) -> Path | None:
    """A program beside this Python first (what pip installed for it), then on PATH."""
    beside = Path(sys.executable).parent
    for name in names:
        found = shutil.which(name, path=str(beside)) or shutil.which(name)
        if found:
            return Path(found)
    return None


def find_cmake() -> tuple[Path, Path]:
    """CMake and ninja."""
    cmake, ninja = find_program("cmake"), find_program("ninja", "ninja-build")
    if cmake is None or ninja is None:
        lacking = " and ".join(n for n, p in (("cmake", cmake), ("ninja", ninja)) if p is None)
        raise MissingTool(f"{lacking} not found", "pip install cmake ninja")
    return cmake, ninja


def find_compiler() -> Path:
    """The C++ compiler: CXX if set, else the usual names."""
    chosen = os.environ.get("CXX", "").split()
    found = find_program(chosen[0]) if chosen else find_program("c++", "g++", "clang++")
    if found is None:
        what = f"CXX={chosen[0]} not found" if chosen else "no C++ compiler (c++, g++, clang++) found"
        raise MissingTool(f"{what} (any of C++20 does: GCC >= 10, Clang >= 14)", "apt install g++")
    return found


def find_torch() -> Torch:
    """The torch of this Python, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise MissingTool("torch is not importable in the build environment", "pip install torch")
    root = Path(spec.origin).parent
    text = (root / "version.py").read_text()
    version = re.search(r"^__version__\s*=\s*'([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b.*=\s*'([^']+)'", text, re.MULTILINE)
    if version is None:
        raise MissingTool(f"cannot read torch's version from {root / 'version.py'}", "pip install torch")
    number = tuple(int(part) for part in re.findall(r"\d+", version[1])[:2])
    if number < MINIMUM_TORCH:
        wanted = ".".join(map(str, MINIMUM_TORCH))
        raise MissingTool(f"torch {version[1]} is older than {wanted}", f"pip install 'torch>={wanted}'")
    return Torch(root, version[1], cuda[1] if cuda else None)


def find_pybind11() -> Path:
    """pybind11's CMake folder; also needs Python's own headers."""
    search = Search()
    spec = importlib.util.find_spec("pybind11")
    if spec is None or spec.origin is None:
        search.missing.append(
            MissingTool("pybind11 is not importable in the build environment", "pip install pybind11")
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        search.missing.append(
            MissingTool("Python's headers (Python.h) are not installed", "apt install python3-dev")
        )
    search.finish()
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "share" / "cmake" / "pybind11"


def find_nvcc(torch: Torch) -> Nvcc:
    """The first nvcc whose CUDA major version is torch's: CUDA_HOME, PATH, /usr/local/cuda, then PyPI's."""
    if torch.cuda is None:
        raise MissingTool(f"torch {torch.version} is built without CUDA", "install a CUDA build of torch")
    major = torch.cuda.split(".")[0]
    fix = f"pip install 'cuda-toolkit[nvcc,cudart,cccl]=={torch.cuda}.*'"
    refused = []
    for path in _nvcc_candidates():
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"release (\d+\.\d+)", text)
        if version is None or version[1].split(".")[0] != major:
            refused.append(f"{path} is CUDA {version[1] if version else '?'}")
            continue
        include, libraries = _nvcc_folders(path)
        for folder in (torch.root.parent / "nvidia" / f"cu{major}" / "lib", *libraries):
            runtime = folder / f"libcudart.so.{major}"
            if runtime.exists():
                return Nvcc(path, version[1], include, runtime)
        refused.append(f"{path} has no libcudart.so.{major}")
    why = "; ".join(refused) if refused else "nvcc not found"
    raise MissingTool(f"no nvcc for torch's CUDA {torch.cuda}: {why}", fix)


def _nvcc_candidates() -> list[Path]:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    paths = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = shutil.which("nvcc")
    if on_path:
        paths.append(Path(on_path))
    paths.append(Path("/usr/local/cuda/bin/nvcc"))
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        paths.extend(sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True))
    return [path for path in dict.fromkeys(paths) if path.exists()]


def _nvcc_folders(nvcc: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(include folders, library folders) as nvcc itself knows them: nvcc on PATH may be a wrapper script."""
    command = [str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    folders: dict[str, tuple[Path, ...]] = {}
    for line in lines:
        match = re.match(r"#\$ (\w+)=(.*)", line)
        if match:
            words = [re.sub(r"^-(I|L|isystem)", "", word) for word in shlex.split(match[2])]
            folders[match[1]] = tuple(Path(os.path.realpath(word)) for word in words if word)
    top = folders.get("TOP", ())
    libraries = (*folders.get("LIBRARIES", ()), *(t / sub for t in top for sub in ("lib64", "lib")))
    return folders.get("INCLUDES", ()) + folders.get("SYSTEM_INCLUDES", ()), libraries


def parallel_jobs() -> int:
    """``MAX_JOBS``, or the cores, but no more than one for each 2 GB of memory: torch's headers are hungry."""
    chosen = os.environ.get("MAX_JOBS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, int(memory / 2e9)))


def platform_tag() -> str:
    """Python and machine the `_C` module is for; part of the cache folder's name."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}-{sys.platform}-{platform.machine()}"
