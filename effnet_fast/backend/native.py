"""Loads the native libraries and says why one is not there. Loading never initialises CUDA.

* ``_ops``: schemas and CPU kernels; its entry points appear in ``torch.ops.effnet_fast_native``;
* ``_cuda``: CUDA kernels for the same namespace, loaded only where torch is built with CUDA;
* ``_C``: host helpers (:func:`host`).

A library lies beside the package (built while installing, or in a checkout) or in the user's cache (built
later by ``effnet-fast build``). One that was built from other sources than those installed is refused, because
its entry points may differ.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from .. import build

NAMESPACE = "effnet_fast_native"
DISABLED = "EFFNET_FAST_DISABLE_NATIVE"
#: Instruction sets of the CPU kernels, by number for the entry point ``cpu_isa`` and by name for EFFNET_FAST_CPU_ISA.
ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "amx")

_lock = threading.Lock()
_host: ModuleType | None = None


class Status(NamedTuple):
    """One native product: loaded from ``path``, or not, for ``reason``, and ``fix`` would add it."""

    loaded: bool
    path: Path | None
    reason: str
    fix: str
    facts: dict[str, Any]  # what build.json keeps: torch and nvcc version, architectures


def status(product: str) -> Status:
    """Load a product (once) and tell what came of it.

    Args:
        product: "_ops", "_cuda" or "_C".
    """
    with _lock:
        return _status(product)


def available(product: str) -> tuple[bool, str]:
    """Whether a product could be loaded, and if not, a one-line reason with the command that adds it."""
    state = status(product)
    if state.loaded:
        return True, ""
    return False, f"{state.reason}; to add it: {state.fix}" if state.fix else state.reason


def host() -> Any:
    """The module ``_C``.

    Raises:
        ImportError: it is not built; the message says what to do.
    """
    loaded, reason = available("_C")
    if not loaded:
        raise ImportError(f"effnet_fast: native module _C is missing: {reason}")
    return _host


def ops() -> Any:
    """The namespace of raw entry points, ``torch.ops.effnet_fast_native``.

    Raises:
        ImportError: the library ``_ops`` is not built; the message says what to do.
    """
    loaded, reason = available("_ops")
    if not loaded:
        raise ImportError(f"effnet_fast: native library _ops is missing: {reason}")
    return getattr(torch.ops, NAMESPACE)


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use now.

    Raises:
        ImportError: as :func:`ops`.
    """
    return ISAS[ops().cpu_isa(-1)]


def _refused(reason: str, fix: str = "", path: Path | None = None) -> Status:
    return Status(False, path, reason, fix, {})


@cache
def _status(product: str) -> Status:
    if product not in build.PRODUCTS:
        raise ValueError(
            f"native.status: product: expected one of {', '.join(build.PRODUCTS)}, got {product!r}"
        )
    if build.is_set(DISABLED):
        return _refused(f"{DISABLED} is set")
    if product == "_cuda" and torch.version.cuda is None:
        return _refused(f"torch {torch.__version__} is built without CUDA")
    if product == "_cuda" and not _status("_ops").loaded:
        return _refused(f"_ops is missing: {_status('_ops').reason}", _status("_ops").fix)
    found = find(product)
    if not found.path:
        return found
    try:
        _load(product, found.path)
    except (ImportError, OSError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return _refused(f"cannot load {found.path}: {first}", build.COMMAND, found.path)
    return found._replace(loaded=True)


def find(product: str) -> Status:
    """Where the product is, as a status that is not loaded yet."""
    root = build.source_root()
    wanted = build.source_hash(root, product) if root else None
    refused: Status | None = None
    left_out: str | None = None
    for folder in build.library_folders(root):
        manifest = build.read_manifest(folder)
        entry, missing = manifest["products"].get(product), manifest["missing"].get(product)
        if missing and left_out is None:
            left_out = str(missing["reason"])
        if entry is None:
            continue
        path = folder / str(entry["file"])
        if not path.is_file():
            refused = refused or _refused(
                f"{path} is listed in {build.MANIFEST} but not there", build.COMMAND
            )
        elif wanted not in (None, entry["sources"]) and not build.is_set("EFFNET_FAST_ALLOW_STALE"):
            was = entry["sources"]
            reason = f"{path.name} was built from other sources ({was}, now {wanted})"
            refused = refused or _refused(reason, build.COMMAND)
        else:
            facts = {key: value for key, value in entry.items() if key not in ("file", "sources", "seconds")}
            return Status(False, path, "", "", facts)
    return refused or _refused(*build.why_missing(product, left_out or ""))


def _load(product: str, path: Path) -> None:
    global _host
    if product == "_C":
        spec = importlib.util.spec_from_file_location("effnet_fast._C", path)
        assert spec is not None and spec.loader is not None
        _host = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_host)
        return
    # Registering the same schemas a second time ends the process: another copy of the package may be loaded.
    if product == "_ops" and any(name.startswith(f"{NAMESPACE}::") for name in _registered()):
        raise ImportError(f"another copy of effnet_fast has registered {NAMESPACE} already")
    torch.ops.load_library(os.fspath(path))


def _registered() -> list[str]:
    return torch._C._dispatch_get_all_op_names()
