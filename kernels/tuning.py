"""Which tile configuration a Triton kernel is launched with: forced, tuned by the user, or from the table.

Order: :func:`force` (tests, tuning) > the user's cache > ``kernels/configs.py``. The cache is a JSON file per GPU
in ``tuned`` under :func:`effnet_fast.build.cache_root`, written by :func:`effnet_fast.bench.tuner.tune`.
"""

from __future__ import annotations

import fcntl
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..build.whole_file import replacing
from ..errors import EffnetFastError
from . import configs
from .configs import Config

#: Changes whenever :func:`find` may answer otherwise, for those who keep what followed from its answers.
version = 0

_forced: dict[str, Config | None] = {}
_pretended: list[str] = []
_watchers: list[set[tuple[str, int]]] = []
_chosen: dict[tuple[object, ...], Config | None] = {}
_tuned: dict[str, dict[str, Config | None]] = {}


def cache_folder() -> Path:
    """Where tuned configurations are kept."""
    # A module of tools, which only those need who look for tuned configurations.
    from ..build import cache_root

    return cache_root() / "tuned"


def cache_file(device_name: str) -> Path:
    """The file of one GPU model."""
    return cache_folder() / (re.sub(r"[^A-Za-z0-9]+", "_", device_name).strip("_").lower() + ".json")


def entry_key(kernel: str, dtype: torch.dtype, klass: str) -> str:
    """The key of one entry of a cache file, for example ``pointwise_fwd/bfloat16/64``."""
    return f"{kernel}/{str(dtype).removeprefix('torch.')}/{klass}"


def find(kernel: str, dtype: torch.dtype, device: torch.device, size: int = 0) -> Config | None:
    """The configuration of ``kernel`` for tensors of this dtype; ``None`` if no tile of it holds ``size``.

    Args:
        kernel: a key of ``configs.TABLE``.
        size: the channel count that decides the shape class (0 where there are no classes).
    """
    for seen in _watchers:
        seen.add((kernel, size))
    if kernel in _forced:
        return _forced[kernel]
    key = (kernel, dtype, device, size)
    if key not in _chosen:
        _chosen[key] = _choose(kernel, dtype, device, size)
    return _chosen[key]


def _choose(kernel: str, dtype: torch.dtype, device: torch.device, size: int) -> Config | None:
    klass = configs.shape_class(kernel, size)
    candidates = configs.rows(kernel, dtype, architecture(device), klass)
    block = configs.MUST_HOLD.get(kernel)
    candidates = [c for c in candidates if block is None or c[block] >= size]
    tuned = _read(device).get(entry_key(kernel, dtype, klass), candidates[0] if candidates else None)
    if tuned in candidates or (tuned is None and kernel == "pointwise_backward"):
        return tuned
    return candidates[0] if candidates else None


def architecture(device: torch.device) -> str:
    """``sm_90`` and so on; ``cpu`` where the interpreter runs."""
    if _pretended:
        return _pretended[-1]
    if device.type != "cuda":
        return device.type
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def _read(device: torch.device) -> dict[str, Config | None]:
    if device.type != "cuda":
        return {}
    name = torch.cuda.get_device_name(device)
    if name not in _tuned:
        path = cache_file(name)
        try:
            _tuned[name] = _entries(path)
        except (OSError, ValueError) as error:
            # Whatever lies there must not keep a network from running: the table has good configurations too.
            warnings.warn(
                f"tuning: {path} cannot be read ({error}), so the configurations of the table are used; "
                "delete it or run `effnet-fast tune` again",
                stacklevel=2,
            )
            _tuned[name] = {}
    return _tuned[name]


def _entries(path: Path) -> dict[str, Any]:
    """What a cache file holds; nothing where there is none."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, expected an object")
    return found


def store(device_name: str, winners: dict[str, Any]) -> Path:
    """Add entries to a GPU's cache file, whole or not at all; other processes may be doing the same.

    Raises:
        EffnetFastError: the folder or the file cannot be written.
    """
    path = cache_file(device_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                known = _entries(path)
            except ValueError:
                known = {}
            with replacing(path) as partial:
                partial.write_text(
                    json.dumps(known | winners, indent=1, sort_keys=True) + "\n", encoding="utf-8"
                )
    except OSError as error:
        raise EffnetFastError(
            f"tuning: {path} cannot be written: {error.strerror}; EFFNET_FAST_CACHE names another folder"
        ) from None
    forget()
    return path


def forget() -> None:
    """Read the cache anew at the next launch."""
    _chosen.clear()
    _tuned.clear()
    _changed()


def _changed() -> None:
    global version
    version += 1


def watched() -> bool:
    """Whether :func:`watch` collects now."""
    return bool(_watchers)


@contextmanager
def force(kernel: str, config: Config | None) -> Iterator[None]:
    """Within the block, launch ``kernel`` with ``config`` whatever the shape; ``None`` is "do not use it"."""
    missing = object()
    previous = _forced.get(kernel, missing)
    _forced[kernel] = config
    _changed()
    try:
        yield
    finally:
        _changed()
        del _forced[kernel]
        if previous is not missing:
            _forced[kernel] = previous  # type: ignore[assignment]


@contextmanager
def pretend(name: str) -> Iterator[None]:
    """Within the block, configurations are those of the architecture ``name`` (``sm_90``), whatever the device."""
    _pretended.append(name)
    forget()
    try:
        yield
    finally:
        _pretended.pop()
        forget()


@contextmanager
def watch() -> Iterator[set[tuple[str, int]]]:
    """Collect the (kernel, size) pairs that launches ask configurations for."""
    seen: set[tuple[str, int]] = set()
    _watchers.append(seen)
    # Everyone asks again, so that this watcher hears of it.
    _changed()
    try:
        yield seen
    finally:
        # By identity: two watchers may have seen the same.
        _watchers[:] = [other for other in _watchers if other is not seen]
