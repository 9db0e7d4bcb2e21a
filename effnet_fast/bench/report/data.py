"""What a report is drawn from: the JSON of ``effnet-fast bench`` and of the shape benchmarks, by device."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...errors import EffnetFastError
from .. import results
from ..providers import is_ours

Row = dict[str, Any]
#: A load average above this before a benchmark began means that others were at work.
BUSY = 0.5
#: The order in which precisions of one job are shown.
WIDEST_FIRST = {"fp32": 0, "tf32": 1, "bf16": 2, "fp16": 3, "int8": 4}
Item = TypeVar("Item")
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
        name = device_name(facts)
        device = devices.setdefault(name, Device(name, [], [], []))
        device.environments.append(facts)
        if "benchmarks" in data:
            rows = [entry["extra_info"] for entry in data["benchmarks"] if entry.get("extra_info")]
            _replace(device.shapes, rows, lambda row: (*shape_job(row), row["provider"]))
        else:
            _replace(device.models, data["rows"], _identity)
            results.add_speedups(device.models)
    for device in devices.values():
        device.models.sort(key=_reading_order)
    return list(devices.values())


def _reading_order(row: Row) -> tuple[Any, ...]:
    """By model, then mode, batch, resolution and dtype; providers of a job stay in the order they were measured."""
    model, mode, batch, resolution, dtype = job(row)
    # Numbers in names count as numbers: b10 comes after b9.
    name = [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", model)]
    return name, mode, batch, resolution, WIDEST_FIRST.get(dtype, len(WIDEST_FIRST)), dtype


def busy(device: Device) -> float | None:
    """The highest load average before a benchmark on a CPU began, if others were at work then; else ``None``."""
    loads = [facts.get("load_before") or 0.0 for facts in device.environments if facts.get("device") == "cpu"]
    return max(loads) if loads and max(loads) > BUSY else None


def _replace(rows: list[Row], fresh: list[Row], identity: Callable[[Row], tuple[Any, ...]]) -> None:
    """Add rows, in place of earlier ones of the same measurement."""
    known = {identity(row) for row in fresh}
    rows[:] = [row for row in rows if identity(row) not in known] + fresh


def device_name(facts: Row) -> str:
    """A device by name; a CPU with the number of threads that were used, which make it another device."""
    name = facts.get("device_name") or facts.get("device") or "unknown device"
    if facts.get("device") != "cpu" or "threads" not in facts:
        return name
    return f"{name}, {facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in results.KEY)


def _read(path: Path) -> Row:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise EffnetFastError(f"report: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EffnetFastError(
            f"report: expected the JSON of `effnet-fast bench` or of `pytest benchmarks`, got {path}, which is no JSON"
        ) from error
    if isinstance(data, dict) and "benchmarks" in data and isinstance(data.get("environment"), dict):
        return data
    return results.read(path)


def group(rows: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Rows, or duels, by key, in order of appearance."""
    groups: dict[Key, list[Item]] = {}
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
