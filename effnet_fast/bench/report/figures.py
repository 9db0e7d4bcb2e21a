"""The figures of a report as PNG, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import EffnetFastError
from .. import results
from ..providers import is_ours
from .data import Device, duels, group, job, shape_job
from .style import COLORS


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise EffnetFastError("report: --png needs matplotlib (pip install 'effnet-fast[bench]')") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(device: Device, folder: Path) -> list[Path]:
    """Write ``latency.png`` and, where shapes were measured, ``shapes.png``; returns what was written.

    Raises:
        EffnetFastError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    jobs = group(results.measured(device.models), job)
    if jobs:
        written.append(_latency(pyplot, device.name, jobs, folder / "latency.png"))
    if duels(device.shapes, shape_job):
        written.append(_shapes(pyplot, device, folder / "shapes.png"))
    return written


def _latency(pyplot: Any, title: str, jobs: dict[tuple[Any, ...], list[dict[str, Any]]], path: Path) -> Path:
    columns = min(3, len(jobs))
    rows = -(-len(jobs) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(jobs) :]:
        axis.axis("off")
    for axis, ((model, mode, batch, resolution, dtype), members) in zip(
        axes.flat, jobs.items(), strict=False
    ):
        members = sorted(members, key=lambda row: -row["median_ms"])
        names = [row["provider"] for row in members]
        times = [row["median_ms"] for row in members]
        errors = [
            [row["median_ms"] - row["p20_ms"] for row in members],
            [row["p80_ms"] - row["median_ms"] for row in members],
        ]
        colors = [COLORS.get(name, ("#777777",))[0] for name in names]
        axis.barh(names, times, xerr=errors, color=colors, error_kw={"lw": 0.8, "alpha": 0.6})
        for label in axis.get_yticklabels():
            label.set_fontweight("bold" if is_ours(label.get_text()) else "normal")
        axis.set_title(f"{model}, {mode}, batch {batch}, {resolution} px, {dtype}", fontsize=9)
        axis.set_xlabel("ms, less is better", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return _write(pyplot, figure, path)


def _shapes(pyplot: Any, device: Device, path: Path) -> Path:
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for duel in duels(device.shapes, shape_job):
        groups.setdefault(duel.job[:4], []).append(duel)
    tallest = max(map(len, groups.values()))
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    size = (4.8 * columns, (0.17 * tallest + 0.9) * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, ((op, mode, batch, dtype), found) in zip(axes.flat, groups.items(), strict=False):
        speeds = [duel.speedup for duel in found][::-1]
        colors = ["#2b8a3e" if speed >= 1 else "#c92a2a" for speed in speeds]
        axis.barh([duel.job[4] for duel in found][::-1], speeds, color=colors)
        axis.axvline(1.0, color="black", lw=0.8, ls="--")
        axis.set_title(f"{op}, {mode}, batch {batch}, {dtype}: speed-up", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{device.name}: over the fastest baseline of each shape", fontsize=10)
    return _write(pyplot, figure, path)


def _write(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
