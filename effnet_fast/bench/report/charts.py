"""The page's charts: what each shows, and how its numbers are grouped. How they are drawn is in :mod:`.svg`."""

from __future__ import annotations

from typing import Any

from .. import results
from ..providers import PROVIDERS, is_ours
from ..stats import geometric_mean
from . import svg
from .axis import measured
from .data import Row, duels, group, shape_job
from .markup import figure, grid, scientific
from .style import style_of


def _order(names: set[str]) -> list[str]:
    known = list(PROVIDERS)
    return sorted(names, key=lambda name: (is_ours(name), known.index(name) if name in known else 99, name))


def _by_network(row: Row) -> tuple[Any, ...]:
    return row["model"], row["mode"], row["resolution"], row["dtype"]


def _over_batch(rows: list[Row], quantity: str, label: str) -> list[str]:
    figures = []
    for (model, mode, resolution, dtype), members in group(rows, _by_network).items():
        title = f"{model}, {mode}, {resolution} px, {dtype}"
        members = [row for row in members if row.get(quantity)]
        names = _order({row["provider"] for row in members})
        if len({row["batch"] for row in members}) > 1:
            series = [
                svg.Series(
                    name,
                    style_of(name),
                    [(row["batch"], row[quantity]) for row in members if row["provider"] == name],
                )
                for name in names
            ]
            figures.append(figure(title, svg.lines(title, series, "batch", label), names))
        elif members:
            ordered = sorted(members, key=lambda row: -row[quantity])
            chart = [
                svg.Bar(row["provider"], row[quantity], style_of(row["provider"]), measured(row[quantity]))
                for row in ordered
            ]
            title = f"{title}, batch {members[0]['batch']}: {label}"
            figures.append(figure(title, svg.bars(title, chart)))
    return figures


def throughput(rows: list[Row]) -> str:
    return grid("Throughput", _over_batch(rows, "images_per_second", "images/s"), "More is better.")


def memory(rows: list[Row]) -> str:
    note = "On CUDA what PyTorch allocated at most; on the CPU the peak of the process while it runs, over what it had before the model was made: the runtime's code counts."
    return grid("Peak memory", _over_batch(rows, "peak_memory_mb", "MB"), note)


def errors(rows: list[Row]) -> str:
    figures = []
    for (model, mode, resolution, dtype), members in group(rows, _by_network).items():
        worst: dict[str, float] = {}
        for row in members:
            if row.get("max_error"):
                worst[row["provider"]] = max(row["max_error"], worst.get(row["provider"], 0.0))
        if worst:
            title = f"{model}, {mode}, {resolution} px, {dtype}"
            chart = [
                svg.Bar(name, worst[name], style_of(name), scientific(worst[name]))
                for name in _order(set(worst))
            ]
            figures.append(figure(title, svg.strips(title, chart)))
    return grid(
        "Error against fp64",
        figures,
        "Largest deviation over the largest value, the worst of all batch sizes; logarithmic, less is better.",
    )


def speedups(rows: list[Row]) -> str:
    figures = []
    for (op, mode, batch, dtype), found in group(duels(rows, shape_job), lambda duel: duel.job[:4]).items():
        mean = geometric_mean([duel.speedup for duel in found])
        title = f"{op}, {mode}, batch {batch}, {dtype}: {mean:.2f}× (geometric mean)"
        chart = [
            svg.Bar(
                duel.job[4],
                duel.speedup,
                "win" if duel.speedup >= 1 else "loss",
                f"{duel.speedup:.2f}×",
                f"{duel.ours['provider']} {duel.ours['median_ms']:.3f} ms, "
                f"{duel.baseline['provider']} {duel.baseline['median_ms']:.3f} ms",
            )
            for duel in found
        ]
        figures.append(figure(title, svg.ratios(title, chart)))
    return grid(
        "Speed-up of each shape over the fastest baseline", figures, "Logarithmic. Red bars are losses."
    )


def roofline(rows: list[Row]) -> str:
    figures = []
    rows = [row for row in results.measured(rows) if row.get("flops") and row.get("bytes")]
    for (op, mode, batch, dtype), members in group(rows, lambda row: shape_job(row)[:4]).items():
        names = _order({row["provider"] for row in members})
        if not any(map(is_ours, names)):
            continue
        series = [
            svg.Series(
                name,
                style_of(name),
                [
                    (row["flops"] / row["bytes"], row["flops"] / row["median_ms"] / 1e6)
                    for row in members
                    if row["provider"] == name
                ],
            )
            for name in names
        ]
        title = f"{op}, {mode}, batch {batch}, {dtype}"
        copy, peak = members[-1].get("copy_gb_per_s"), members[-1].get("matmul_gflop_per_s")
        roof = svg.Roof(peak, copy) if copy and peak else None
        line = f"copies {copy:,.0f} GB/s, matrix products {peak:,.0f} GFLOP/s" if roof else ""
        chart = svg.dots(title, series, "FLOP per byte", "GFLOP/s", roof)
        figures.append(figure(title, chart, names, line))
    note = (
        "One dot a shape: its multiplications and additions, over the bytes a fused kernel must move and over the "
        "time taken. The line: copy bandwidth and matrix products as measured in the same run. A dot above it was "
        "served by caches, or computes faster than PyTorch's own matrix product."
    )
    return grid("Roofline", figures, note)
