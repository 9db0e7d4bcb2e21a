"""Drives CMake: one build tree per product, so that what cannot be built does not hinder the others.

Beside the libraries lies ``build.json``: for every product the hash of the sources it was built from, or the
reason it is missing. :mod:`effnet_fast.backend.native` reads it and refuses libraries of other sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from . import gpu, toolchain
from .progress import Progress, run
from .toolchain import MissingTool
from .whole_file import replacing

PACKAGE = Path(__file__).resolve().parent.parent
MANIFEST = "build.json"
#: Libraries that were built while installing, or in place in a checkout.
LIBRARY_FOLDER = PACKAGE / "lib"

#: product -> the sources it depends on, under the source root.
SOURCES = {
    "_ops": ("CMakeLists.txt", "cmake", "csrc/library.cpp", "csrc/common", "csrc/cpu"),
    "_C": ("CMakeLists.txt", "cmake", "csrc/bindings.cpp", "csrc/common", "csrc/cuda/planner.h"),
    "_cuda": ("CMakeLists.txt", "cmake", "csrc/common", "csrc/cuda"),
}
PRODUCTS = tuple(SOURCES)
SUFFIXES = frozenset({".txt", ".cmake", ".cpp", ".h", ".cu", ".cuh"})


class BuildError(RuntimeError):
    """The native build failed although ``EFFNET_FAST_FORCE_BUILD`` asked for it."""


def version() -> str:
    """The package's version, read without importing it."""
    match = re.search(r'^__version__ = "([^"]+)"', (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    assert match is not None, "effnet_fast/__init__.py has no __version__"
    return match[1]


def source_root() -> Path | None:
    """The folder of CMakeLists.txt: a checkout's root, or the copy of the sources that a wheel carries."""
    for root in (PACKAGE.parent, PACKAGE / "sources"):
        if (root / "CMakeLists.txt").is_file() and (root / "csrc" / "library.cpp").is_file():
            return root
    return None


def source_files(root: Path, product: str | None = None) -> list[Path]:
    """Source files of one product, or of all."""
    tops = SOURCES[product] if product else sorted({top for tops in SOURCES.values() for top in tops})
    files = []
    for top in tops:
        path = root / top
        files.extend([path] if path.is_file() else sorted(path.rglob("*")))
    return [
        file for file in files if file.suffix in SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]


def source_hash(root: Path, product: str | None = None) -> str:
    """Twelve hexadecimal digits over names and contents."""
    digest = hashlib.sha256()
    for file in source_files(root, product):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def cache_root() -> Path:
    """Where an installed package puts what is built later; ``EFFNET_FAST_CACHE`` overrides."""
    chosen = os.environ.get("EFFNET_FAST_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "effnet_fast"


def cache_folder(root: Path) -> Path:
    """The cache's folder for exactly these sources and this Python."""
    return cache_root() / f"{version()}-{source_hash(root)}-{toolchain.platform_tag()}"


def work_folder(root: Path) -> Path:
    """CMake's trees of a checkout: kept, so that only what changed is compiled again."""
    return root / "build" / f"native-{toolchain.platform_tag()}"


def output_folders(root: Path) -> tuple[Path, Path]:
    """(libraries, CMake's trees): in place in a checkout, in the cache for an installed package."""
    if root == PACKAGE.parent:
        return LIBRARY_FOLDER, work_folder(root)
    folder = cache_folder(root)
    return folder, folder / "work"


def installed_packages() -> list[Path]:
    """Other copies of the package that Python would find, were it not for this one."""
    folders = (Path(entry or ".").resolve() / PACKAGE.name for entry in sys.path)
    return [
        folder for folder in dict.fromkeys(folders) if folder != PACKAGE and (folder / "dispatch.py").is_file()
    ]


def library_folders(root: Path | None) -> list[Path]:
    """Where libraries are looked for, in this order: beside the package, where they are built later, and for a source
    tree also in the cache and in the package that is installed, which may hold libraries of the same sources."""
    folders = [LIBRARY_FOLDER]
    if root is not None:
        folders += [output_folders(root)[0], cache_folder(root)]
    if root == PACKAGE.parent:
        folders += [folder / LIBRARY_FOLDER.name for folder in installed_packages()]
    return list(dict.fromkeys(folders))


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """``{"products": {...}, "missing": {...}}``; empty where nothing was built."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return {"products": dict(manifest["products"]), "missing": dict(manifest["missing"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"products": {}, "missing": {}}


def came_with_the_package(root: Path) -> list[str]:
    """Products of an installed package whose libraries lie beside it and fit its sources; none in a checkout, where
    libraries are built in place and compilers decide what is new."""
    known = read_manifest(LIBRARY_FOLDER)["products"]
    if root == PACKAGE.parent:
        return []
    return [
        product
        for product in PRODUCTS
        if (entry := known.get(product))
        and entry["sources"] == source_hash(root, product)
        and (LIBRARY_FOLDER / entry["file"]).is_file()
    ]


def unwanted(product: str) -> MissingTool | None:
    """Why a product is left out although nothing is known to be in its way; ``None``: it is wanted."""
    if toolchain.is_set("EFFNET_FAST_SKIP_BUILD"):
        return MissingTool("EFFNET_FAST_SKIP_BUILD is set", "")
    return gpu.refusal() if product == "_cuda" else None


def configuration(product: str, root: Path) -> tuple[list[str], dict[str, Any]]:
    """CMake's command line for a product and the facts worth keeping; raises :class:`MissingTool`."""
    search = toolchain.Search()
    tools = search.find(toolchain.find_cmake)
    compiler = search.find(toolchain.find_compiler)
    arguments: dict[str, Any] = {
        "EFFNET_PRODUCTS": product,
        "EFFNET_VERSION": version(),
        "EFFNET_WERROR": "ON" if toolchain.is_set("EFFNET_FAST_WERROR") else "OFF",
    }
    facts: dict[str, Any] = {}
    if product == "_C":
        arguments["pybind11_DIR"] = search.find(toolchain.find_pybind11)
        arguments["Python_EXECUTABLE"] = Path(sys.executable)
    else:
        torch = search.find(toolchain.find_torch)
        if torch is not None:
            facts["torch"] = torch.version
            arguments["EFFNET_TORCH_INCLUDE"] = torch.include
            arguments["EFFNET_TORCH_LIB"] = torch.lib
            if product == "_cuda":
                chosen = search.find(partial(_cuda_configuration, torch))
                arguments.update(chosen[0] if chosen else {})
                facts.update(chosen[1] if chosen else {})
    search.finish()
    assert tools is not None
    cmake, ninja = tools
    arguments.update(CMAKE_MAKE_PROGRAM=ninja, CMAKE_CXX_COMPILER=compiler)
    return [str(cmake), "-G", "Ninja", "-S", str(root), *(f"-D{k}={v}" for k, v in arguments.items())], facts


def _cuda_configuration(torch: toolchain.Torch) -> tuple[dict[str, Any], dict[str, Any]]:
    """CMake's arguments for the CUDA kernels, and the facts."""
    nvcc = toolchain.find_nvcc(torch)
    archs = gpu.architectures(nvcc)
    arguments = {
        "EFFNET_NVCC": nvcc.path,
        "EFFNET_CUDA_INCLUDE": ";".join(map(str, nvcc.include)),
        "EFFNET_CUDART": nvcc.runtime,
        "EFFNET_CUDA_ARCHS": ";".join(archs),
    }
    return arguments, {"nvcc": nvcc.version, "archs": list(archs)}


def _build_product(product: str, root: Path, out: Path, work: Path, verbose: bool) -> dict[str, Any]:
    """Configure, compile, put the library into ``out`` atomically; returns its manifest entry."""
    command, facts = configuration(product, root)
    before = source_hash(root, product)
    tree = work / product
    tree.mkdir(parents=True, exist_ok=True)
    log = work / f"{product}.log"
    log.unlink(missing_ok=True)
    progress = Progress(product)
    try:
        run([*command, "-B", str(tree)], log, verbose, progress)
        jobs = str(toolchain.parallel_jobs())
        run([command[0], "--build", str(tree), "--parallel", jobs], log, verbose, progress)
    finally:
        progress.close()
    library = max(tree.glob(f"{product}*.so"), key=lambda path: path.stat().st_mtime)
    with replacing(out / library.name) as new:
        shutil.copyfile(library, new)
        new.chmod(0o755)
    return {"file": library.name, "sources": before, "seconds": round(progress.seconds), **facts}


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes of this machine respect."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _record(
    out: Path, work: Path, product: str, built: dict[str, Any] | None, missing: dict[str, Any] | None
) -> None:
    """One product's outcome into the manifest, which other processes may be changing too."""
    with _locked(work / "manifest.lock"):
        out.mkdir(parents=True, exist_ok=True)
        manifest = read_manifest(out)
        manifest["missing"].pop(product, None)
        if built is not None:
            manifest["products"][product] = built
        if missing is not None:
            manifest["missing"][product] = missing
        with replacing(out / MANIFEST) as new:
            new.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def build(
    root: Path, out: Path, work: Path, products: Sequence[str] = PRODUCTS, verbose: bool = False
) -> dict[str, dict[str, Any]]:
    """Build what can be built from ``root`` into ``out``; never raises for a missing tool unless forced to.

    Returns:
        The manifest, as also written to ``out/build.json``. A missing product that was not wanted has no ``failed``.

    Raises:
        BuildError: with ``EFFNET_FAST_FORCE_BUILD`` set, when a product that is wanted is missing.
    """
    failed = {}
    for product in products:
        skipped = unwanted(product)
        if skipped is not None:
            # An older library stays: its hash tells whether it still fits the sources.
            there = product in read_manifest(out)["products"]
            _record(
                out, work, product, None, None if there else {"reason": skipped.reason, "fix": skipped.fix}
            )
            continue
        try:
            with _locked(work / f"{product}.lock"):
                entry = _build_product(product, root, out, work, verbose)
        except MissingTool as missing:
            failed[product] = missing.reason
            _record(
                out, work, product, None, {"reason": missing.reason, "fix": missing.fix, "failed": True}
            )
        else:
            _record(out, work, product, entry, None)
    if failed and toolchain.is_set("EFFNET_FAST_FORCE_BUILD"):
        raise BuildError("; ".join(f"{product}: {reason}" for product, reason in failed.items()))
    return read_manifest(out)
