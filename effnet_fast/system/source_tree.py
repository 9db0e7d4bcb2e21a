"""A source tree from which the package is imported although it is not installed there.

``./effnet_fast`` comes before the installed package wherever Python looks into the current folder first: ``python -c``,
``python -m``, a notebook. Such a tree lacks the sub-package ``kernels``, which lies beside it, and often the native
libraries. It takes what fits (libraries are found by the hash of their sources) and says what helps where nothing does.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .. import build

PACKAGE = Path(__file__).resolve().parent.parent
#: What it is imported as.
NAME = __name__.partition(".")[0]


def settle() -> None:
    """Called at the end of importing the package; says in one sentence what helps where libraries are missing."""
    # They need the kernels, which are not where Python looks for them until this module has been imported.
    from ..backend import native
    from . import advice

    if ROOT is None or native.find("_ops").path is not None:
        return
    if not _is_being_built() and not build.is_set(native.DISABLED):
        advice.said()
        advice.warn(_sentence(ROOT))


def _uninstalled() -> Path | None:
    """The root of such a tree; ``None`` where the package is installed, editable or not."""
    root = build.source_root()
    return None if root is None or root != PACKAGE.parent or _kernels_are_of(root) else root


def _kernels_are_of(root: Path) -> bool:
    spec = importlib.util.find_spec(f"{NAME}.kernels")
    return spec is not None and spec.origin == str(root / "kernels" / "__init__.py")


def _import_kernels(root: Path) -> None:
    name, folder = f"{NAME}.kernels", root / "kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    setattr(sys.modules[NAME], "kernels", module)  # noqa: B010 (the package is not known statically)


def _is_being_built() -> bool:
    """``python -m effnet_fast build``, the command that the sentence names."""
    return sys.argv[:2] == ["-m", "build"]


def _sentence(root: Path) -> str:
    elsewhere = build.installed_packages()
    other = f", or leave this folder: the installed package is in {elsewhere[0]}" if elsewhere else ""
    return (
        f"effnet_fast: imported from the source tree {root}, for which no native libraries are built, so that "
        f"PyTorch's own modules will run; build them there with `{sys.executable} -m effnet_fast build`{other}"
    )


#: Of the source tree, if the package is imported from one.
ROOT = _uninstalled()
if ROOT is not None:
    _import_kernels(ROOT)
