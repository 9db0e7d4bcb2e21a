"""Which tile configuration a Triton kernel is launched with: forced, tuned by the user, or from the table.

Order: :func:`force` (tests, tuning) > the user's cache > ``kernels/configs.py``. The cache is a JSON file per GPU
in ``$EFFNET_FAST_CACHE/tuned`` or ``~/.cache/effnet_fast/tuned``, written by :func:`effnet_fast.tuner.tune`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .errors import EffnetFastError
from .kernels import configs
from .kernels.configs import Config

_forced: dict[str, Config | None] = {}
_pretended: list[str] = []
_watchers: list[set[tuple[str, int]]] = []
_chosen: dict[tuple[object, ...], Config | None] = {}
_tuned: dict[str, dict[str, Config | None]] = {}


def cache_folder() -> Path:
    """Where tuned configurations are kept."""
    root = os.environ.get("EFFNET_FAST_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "effnet_fast") / "tuned"


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
            _tuned[name] = json.loads(path.read_text()) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise EffnetFastError(
                f"tuning: cannot read {path} ({error}); delete it or run `effnet-fast tune` again"
            ) from error
    return _tuned[name]


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


def forget() -> None:
    """Read the cache anew at the next launch."""
    _chosen.clear()
    _tuned.clear()


@contextmanager
def force(kernel: str, config: Config | None) -> Iterator[None]:
    """Within the block, launch ``kernel`` with ``config`` whatever the shape; ``None`` is "do not use it"."""
    missing = object()
    previous = _forced.get(kernel, missing)
    _forced[kernel] = config
    try:
        yield
    finally:
        del _forced[kernel]
        if previous is not missing:
            _forced[kernel] = previous  # type: ignore[assignment]


@contextmanager
def watch() -> Iterator[set[tuple[str, int]]]:
    """Collect the (kernel, size) pairs that launches ask configurations for."""
    seen: set[tuple[str, int]] = set()
    _watchers.append(seen)
    try:
        yield seen
    finally:
        # By identity: two watchers may have seen the same.
        _watchers[:] = [other for other in _watchers if other is not seen]
