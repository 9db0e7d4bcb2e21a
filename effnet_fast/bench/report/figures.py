"""The figures of a report as PNG, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import EffnetFastError
from .. import results
from ..providers import is_ours
from .data import Device, Duel, duels, group, job, shape_job
from .style import COLORS

GOOD, BAD, RULE = "#2b8a3e", "#c92a2a", "#c9cfd6"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise EffnetFastError("report: --png needs matplotlib (pip install 'effnet-fast[bench]')") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(device: Device, folder: Path) -> list[Path]:
    """Write ``models.png`` and ``shapes.png``, each where both sides were measured; returns what was written.

    Raises:
        EffnetFastError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if duels(device.models, job):
        written.append(_models(pyplot, device, folder / "models.png"))
    if duels(device.shapes, shape_job):
        written.append(_shapes(pyplot, device, folder / "shapes.png"))
    return written


def _models(pyplot: Any, device: Device, path: Path) -> Path:
    """Every provider of every job by its speed relative to the fastest baseline of that job."""
    best = {duel.job: duel.baseline["median_ms"] for duel in duels(device.models, job)}
    jobs = {key: rows for key, rows in group(results.measured(device.models), job).items() if key in best}
    names = sorted({row["provider"] for rows in jobs.values() for row in rows}, key=_rank)
    figure, axis = pyplot.subplots(figsize=(9, 1.9 + 0.32 * len(jobs)), layout="constrained")
    heights = {key: len(jobs) - index for index, key in enumerate(jobs)}
    for name in names:
        rows = [(key, row) for key, members in jobs.items() for row in members if row["provider"] == name]
        axis.scatter(
            [best[key] / row["median_ms"] for key, row in rows],
            [heights[key] for key, _ in rows],
            **_marker(name),
        )
    axis.axvline(1.0, color="black", lw=0.8, ls="--")
    axis.set_xscale("log")
    _ratio_ticks(axis)
    axis.set_yticks(list(heights.values()), [_job_name(key) for key in heights], fontsize=9)
    axis.set_ylim(0.3, len(jobs) + 0.7)
    axis.grid(axis="y", color=RULE, lw=0.6)
    axis.set_xlabel("speed relative to the fastest baseline, more is better; left of 1 is a loss", fontsize=9)
    _plain(axis)
    axis.set_title(device.name, fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return _write(pyplot, figure, path)


def _rank(name: str) -> tuple[bool, int, str]:
    known = list(COLORS)
    return is_ours(name), known.index(name) if name in known else len(known), name


def _marker(name: str) -> dict[str, Any]:
    """Ours are filled and drawn over the others."""
    color = COLORS.get(name, ("#777777",))[0]
    look = {"label": name, "edgecolors": color, "linewidths": 1.5}
    if is_ours(name):
        return {**look, "color": color, "s": 46, "marker": "D", "zorder": 4}
    return {**look, "facecolors": "white", "s": 40, "zorder": 3}


def _ratio_ticks(axis: Any) -> None:
    low, high = axis.get_xlim()
    ticks = [t for t in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20) if low <= t <= high]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axis.minorticks_off()


def _job_name(key: tuple[Any, ...]) -> str:
    model, mode, batch, resolution, dtype = key
    return f"{model} {mode}, batch {batch}, {resolution} px, {dtype}"


def _plain(axis: Any) -> None:
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _shapes(pyplot: Any, device: Device, path: Path) -> Path:
    groups = group(duels(device.shapes, shape_job), lambda duel: duel.job[:4])
    columns = min(3, len(groups))
    lines = [list(groups.items())[i : i + columns] for i in range(0, len(groups), columns)]
    heights = [0.16 * max(len(found) for _, found in line) + 0.7 for line in lines]
    figure, axes = pyplot.subplots(
        *(len(lines), columns),
        figsize=(4.4 * columns, sum(heights) + 0.3),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, line in zip(axes, lines, strict=True):
        for axis, ((op, mode, batch, dtype), found) in zip(row, line, strict=False):
            axis.axis("on")
            axis.set_title(f"{op}, {mode}, batch {batch}, {dtype}", fontsize=9)
            _ratios(axis, found)
    title = f"{device.name}: speed-up over the fastest baseline of each shape"
    figure.suptitle(title, fontsize=10)
    return _write(pyplot, figure, path)


def _ratios(axis: Any, found: Sequence[Duel]) -> None:
    """Bars that begin at 1."""
    speeds = [duel.speedup for duel in found][::-1]
    colors = [GOOD if speed >= 1 else BAD for speed in speeds]
    labels = [duel.job[4] for duel in found][::-1]
    axis.set_xscale("log")
    axis.barh(labels, [speed - 1 for speed in speeds], left=1.0, color=colors)
    axis.set_xlim(min(0.8, 0.9 * min(speeds)), max(1.25, 1.1 * max(speeds)))
    axis.set_ylim(-0.6, len(speeds) - 0.4)
    axis.axvline(1.0, color="black", lw=0.8)
    _ratio_ticks(axis)
    axis.tick_params(axis="y", labelsize=7)
    _plain(axis)


def _write(pyplot: Any, figure: Any, path: Path) -> Path:
    # No dates or versions inside: the same data gives the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path
