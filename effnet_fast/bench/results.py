"""The JSON of a sweep: ``{"environment": {...}, "rows": [...]}``; speed-ups, comparison, reading and writing."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import build
from ..errors import EffnetFastError
from ..system import environment, writing
from .providers import is_ours
from .stats import Spread, verdict

Row = dict[str, Any]

#: What makes two rows the same measurement by different providers.
JOB = ("model", "mode", "batch", "resolution", "dtype")
KEY = (*JOB, "provider")
COLUMNS = (
    *KEY,
    *("status", "median_ms", "p20_ms", "p80_ms", "images_per_second", "peak_memory_mb", "max_error"),
    *("speedup", "roofline"),
)


def facts(device: str) -> dict[str, Any]:
    """The machine and the software, without touching a CUDA device."""
    system = environment.system()
    packages = ("torch", "triton", "torchvision", "timm", "onnxruntime", "openvino", "torch-tensorrt")
    return {
        "device": device,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "effnet_fast": build.version(),
        "revision": revision(),
        "python": platform.python_version(),
        **{name: version for name in packages if (version := _version(name)) is not None},
        "cpu": system["cpu"],
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": system["cores"],
        "threads": system["torch_threads"],
        "driver": system["nvidia_driver"],
        "load_before": round(os.getloadavg()[0], 1),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def revision() -> str | None:
    """The commit of the source tree, with a plus where files differ from it; ``None`` outside a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def add_speedups(rows: list[Row]) -> None:
    """Set ``speedup``: the fastest baseline of the same job over the row; above 1 the row is faster.

    ``None`` for failed rows and where no baseline was measured.
    """
    best: dict[tuple[Any, ...], float] = {}
    for row in measured(rows):
        if not is_ours(row["provider"]):
            job = job_of(row)
            best[job] = min(best.get(job, row["median_ms"]), row["median_ms"])
    for row in rows:
        baseline = best.get(job_of(row))
        row["speedup"] = None if baseline is None or not row.get("median_ms") else baseline / row["median_ms"]


def job_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in JOB)


def measured(rows: Iterable[Row]) -> list[Row]:
    """The rows that hold a time."""
    return [row for row in rows if row.get("median_ms")]


class Change(NamedTuple):
    """One measurement that two files share."""

    key: tuple[Any, ...]
    old_ms: float
    new_ms: float
    verdict: str  # better, worse, same


def compare(old: list[Row], new: list[Row]) -> list[Change]:
    """Every measurement found in both, in the order of ``new``."""
    before = {tuple(row[name] for name in KEY): row for row in measured(old)}
    changes = []
    for row in measured(new):
        key = tuple(row[name] for name in KEY)
        if key in before:
            was = before[key]
            changes.append(
                Change(key, was["median_ms"], row["median_ms"], verdict(_spread(was), _spread(row)))
            )
    return changes


def _spread(row: Row) -> Spread:
    return Spread(row["median_ms"], row["p20_ms"], row["p80_ms"])


def read(path: Path) -> dict[str, Any]:
    """A file that :func:`write` wrote.

    Raises:
        EffnetFastError: it cannot be read or is something else.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise EffnetFastError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EffnetFastError(f"{path}: expected the JSON of `effnet-fast bench`, got no JSON") from error
    rows = data.get("rows") if isinstance(data, dict) else None
    ok = isinstance(rows, list) and all(isinstance(row, dict) and not set(KEY) - set(row) for row in rows)
    if not ok or not isinstance(data.get("environment"), dict):
        raise EffnetFastError(f"{path}: expected the JSON of `effnet-fast bench`")
    return data


def write(path: Path, data: dict[str, Any]) -> None:
    """Everything that was measured, as JSON.

    Raises:
        EffnetFastError: it cannot be written.
    """
    with writing.replacing(path, "bench") as file:
        file.write(json.dumps(data, indent=1) + "\n")


def write_csv(path: Path, rows: list[Row]) -> None:
    """The rows as a table.

    Raises:
        EffnetFastError: it cannot be written.
    """
    with writing.replacing(path, "bench") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
