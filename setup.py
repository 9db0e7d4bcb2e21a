"""Drives the native build during installation. Metadata is in pyproject.toml, the build in CMakeLists.txt.

Nothing here may fail for want of a compiler, torch, nvcc or a GPU: what cannot be built is recorded in
effnet_fast/lib/build.json and can be added later with ``effnet-fast build``.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# Without build isolation pip takes the setuptools that is there, and an old one refuses pyproject.toml in other words.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"effnet_fast: expected setuptools >= 77 to build with, got {setuptools.__version__}; "
        "run: pip install 'setuptools>=77'"
    )


def load_build_package() -> ModuleType:
    """effnet_fast/build, without importing effnet_fast (which needs torch)."""
    folder = ROOT / "effnet_fast" / "build"
    spec = importlib.util.spec_from_file_location(
        "effnet_fast_build", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


native = load_build_package()


def native_build(out: Path) -> None:
    manifest = native.build(ROOT, out, native.work_folder(ROOT), verbose=False)
    for product, entry in sorted(manifest["products"].items()):
        if product not in manifest["missing"]:
            print(f"effnet_fast: {product} built ({entry['file']})")
    for product, entry in sorted(manifest["missing"].items()):
        remedy = f"; to add it: {entry['fix']}" if entry["fix"] else ""
        print(f"effnet_fast: {product} not built: {entry['reason']}{remedy}")


class BuildNative(build_ext):
    """Replaces setuptools' compiler by CMake; in place for editable installs and ``build_ext --inplace``."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        out = (ROOT if in_place else Path(self.build_lib)) / "effnet_fast" / "lib"
        if not in_place:
            shutil.rmtree(out, ignore_errors=True)  # an earlier build's library must not enter this wheel
        native_build(out)

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildPython(build_py):
    """Adds the sources to the package, for ``effnet-fast build`` on the user's machine."""

    def run(self) -> None:
        package = Path(self.build_lib) / "effnet_fast"
        if not self.editable_mode:
            shutil.rmtree(
                package, ignore_errors=True
            )  # an earlier build may have left files that are gone since
        super().run()
        if self.editable_mode:
            return
        for file in native.source_files(ROOT):
            target = package / "sources" / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        if not self.distribution.has_ext_modules():
            native_build(package / "lib")  # builds nothing, records why


def extensions() -> list[Extension]:
    """Empty when nothing native can be built: the wheel is then a pure one, for every platform."""
    if native.is_set("EFFNET_FAST_SKIP_BUILD") or all(map(native.diagnose, native.PRODUCTS)):
        return []
    return [Extension("effnet_fast.lib._ops", sources=[])]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "build_py": BuildPython})
