"""What a report is drawn from: the JSON of ``effnet-fast bench`` and of the shape benchmarks, by device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...errors import EffnetFastError
from .. import results
from ..providers import is_ours

Row = dict[str, Any]
Key = TypeVar("Key")


class Device(NamedTuple):
    """Everything measured on one kind of device."""

    name: str
    environments: list[Row]
    models: list[Row]  # rows of effnet-fast bench
    shapes: list[Row]  # the extra_info of the shape benchmarks


class Duel(NamedTuple):
    """The best baseline and the best of the package's providers for one job or shape."""

    job: tuple[Any, ...]
    baseline: Row
    ours: Row

    @property
    def speedup(self) -> float:
        return self.baseline["median_ms"] / self.ours["median_ms"]


def load(paths: Sequence[Path]) -> list[Device]:
    """Read files; later ones replace the same measurements of earlier ones.

    Raises:
        EffnetFastError: a file that is neither of the two kinds.
    """
    devices: dict[str, Device] = {}
    for path in paths:
        data = _read(path)
        facts = {**data["environment"], "file": path.name}
        name = facts.get("device_name") or facts.get("device") or "unknown device"
        device = devices.setdefault(name, Device(name, [], [], []))
        device.environments.append(facts)
        if "benchmarks" in data:
            device.shapes.extend(
                entry["extra_info"] for entry in data["benchmarks"] if entry.get("extra_info")
            )
        else:
            fresh = {_identity(row) for row in data["rows"]}
            device.models[:] = [row for row in device.models if _identity(row) not in fresh] + data["rows"]
            results.add_speedups(device.models)
    return list(devices.values())


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in results.KEY)


def _read(path: Path) -> Row:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EffnetFastError(f"report: {path} cannot be read: {error}") from error
    if isinstance(data, dict) and "benchmarks" in data and isinstance(data.get("environment"), dict):
        return data
    return results.read(path)


def group(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Rows by key, in order of appearance."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def job(row: Row) -> tuple[Any, ...]:
    return results.job_of(row)


def shape_job(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("op", "mode", "batch", "dtype", "shape"))


def duels(rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> list[Duel]:
    """For each job measured by both sides, the fastest of each."""
    found = []
    for name, members in group(results.measured(rows), key).items():
        sides: list[list[Row]] = [[], []]
        for row in members:
            sides[is_ours(row["provider"])].append(row)
        if all(sides):
            baseline, ours = (min(side, key=lambda row: row["median_ms"]) for side in sides)
            found.append(Duel(name, baseline, ours))
    return found
