"""One self-contained page: inline SVG and CSS, no scripts, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .. import results
from ..providers import PROVIDERS, is_ours
from ..stats import geometric_mean
from . import svg
from .data import Device, Duel, Row, duels, group, job, shape_job
from .style import CSS, style_of


def render(devices: Sequence[Device]) -> str:
    """The HTML of a report."""
    body = "".join(_device(device) for device in devices) or "<p>Nothing was measured.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>effnet_fast benchmarks</title><style>{CSS}</style></head><body><main>"
        f"<h1>effnet_fast benchmarks</h1>{body}</main></body></html>\n"
    )


def _device(device: Device) -> str:
    parts = [f"<h2>{escape(device.name)}</h2>", f'<p class="muted">{escape(_subtitle(device))}</p>']
    models = results.measured(device.models)
    if models:
        parts += [_summary(device), _throughput(models), _memory(models), _errors(models)]
    if device.shapes:
        parts += [_speedups(device.shapes), _roofline(device.shapes)]
    failed = [row for row in device.models if not row.get("median_ms")]
    if failed:
        parts.append(_failures(failed))
    parts.append(_environment(device.environments))
    return "<section>" + "".join(parts) + "</section>"


def _subtitle(device: Device) -> str:
    first = device.environments[-1]
    threads = f", {first['threads']} thread(s)" if "threads" in first and first.get("device") == "cpu" else ""
    dates = sorted({str(facts.get("date", ""))[:10] for facts in device.environments})
    return f"{' and '.join(dates)}, PyTorch {first.get('torch', '?')}{threads}"


def job_name(key: tuple[Any, ...]) -> str:
    """``b0, infer, batch 1, 224, fp32``."""
    model, mode, batch, resolution, dtype = key
    return f"{model}, {mode}, batch {batch}, {resolution} px, {dtype}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; all but the first column are aligned to the right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(title: str, chart: str, legend: Sequence[str] = ()) -> str:
    keys = "".join(f'<li><i class="{style_of(name)}"></i>{escape(name)}</li>' for name in legend)
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}{f'<ul>{keys}</ul>' if keys else ''}</figure>"


def _order(names: set[str]) -> list[str]:
    known = list(PROVIDERS)
    return sorted(names, key=lambda name: (is_ours(name), known.index(name) if name in known else 99, name))


def ratio(duel: Duel) -> str:
    """The speed-up as HTML, marked as a win, a loss, or neither."""
    kind = "win" if duel.speedup > 1.02 else "loss" if duel.speedup < 0.98 else "tie"
    return f'<b class="{kind}">{duel.speedup:.2f}&times;</b>'


def _summary(device: Device) -> str:
    rows = []
    for duel in duels(device.models, job):
        fraction, error = duel.ours.get("roofline"), duel.ours.get("max_error")
        rows.append(
            (
                escape(job_name(duel.job)),
                ratio(duel),
                f"{duel.ours['images_per_second']:,.1f}",
                escape(duel.ours["provider"]),
                f"{duel.baseline['images_per_second']:,.1f}",
                escape(duel.baseline["provider"]),
                "" if fraction is None else f"{100 * fraction:.0f} %",
                "" if error is None else f"{error:.1e}",
            )
        )
    if not rows:
        return ""
    columns = (
        *("job", "speed-up", "images/s", "fastest of effnet_fast", "images/s", "fastest baseline"),
        *("of roofline", "error"),
    )
    note = "Speed-up: against the fastest baseline measured. Error: of the logits (training: of the stem's gradient), relative to fp64."
    return f'<h3>Summary</h3>{_table(columns, rows)}<p class="muted">{note}</p>'


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
            figures.append(_figure(title, svg.lines(title, series, "batch", label), names))
        elif members:
            ordered = sorted(members, key=lambda row: -row[quantity])
            chart = [
                svg.Bar(row["provider"], row[quantity], style_of(row["provider"]), svg.number(row[quantity]))
                for row in ordered
            ]
            title = f"{title}, batch {members[0]['batch']}: {label}"
            figures.append(_figure(title, svg.bars(title, chart)))
    return figures


def _grid(title: str, figures: Sequence[str], note: str = "") -> str:
    if not figures:
        return ""
    more = f'<p class="muted">{escape(note)}</p>' if note else ""
    return f'<h3>{escape(title)}</h3>{more}<div class="grid">{"".join(figures)}</div>'


def _throughput(rows: list[Row]) -> str:
    return _grid("Throughput", _over_batch(rows, "images_per_second", "images/s"), "More is better.")


def _memory(rows: list[Row]) -> str:
    note = "On CUDA what PyTorch allocated at most; on the CPU what the process grew by, the runtime's code included."
    return _grid("Peak memory", _over_batch(rows, "peak_memory_mb", "MB"), note)


def _errors(rows: list[Row]) -> str:
    figures = []
    for (model, mode, resolution, dtype), members in group(rows, _by_network).items():
        worst: dict[str, float] = {}
        for row in members:
            if row.get("max_error"):
                worst[row["provider"]] = max(row["max_error"], worst.get(row["provider"], 0.0))
        if worst:
            title = f"{model}, {mode}, {resolution} px, {dtype}"
            chart = [
                svg.Bar(name, worst[name], style_of(name), f"{worst[name]:.1e}")
                for name in _order(set(worst))
            ]
            figures.append(_figure(title, svg.bars(title, chart, log=True)))
    return _grid("Error against fp64", figures, "Largest deviation over the largest value; less is better.")


def _speedups(rows: list[Row]) -> str:
    figures = []
    for (op, mode, batch, dtype), found in _shape_groups(duels(rows, shape_job)).items():
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
        figures.append(_figure(title, svg.bars(title, chart, reference=1.0)))
    return _grid("Speed-up of each shape over the fastest baseline", figures, "Left of the line is a loss.")


def _shape_groups(found: Sequence[Duel]) -> dict[tuple[Any, ...], list[Duel]]:
    groups: dict[tuple[Any, ...], list[Duel]] = {}
    for duel in found:
        groups.setdefault(duel.job[:4], []).append(duel)
    return groups


def _roofline(rows: list[Row]) -> str:
    figures = []
    for (op, mode, batch, dtype), members in group(rows, lambda row: shape_job(row)[:4]).items():
        names = _order({row["provider"] for row in members})
        if not any(map(is_ours, names)):
            continue
        series = [
            svg.Series(
                name,
                style_of(name),
                [(row["bytes"] / 1e6, row["gb_per_s"]) for row in members if row["provider"] == name],
            )
            for name in names
        ]
        copy = members[-1].get("copy_gb_per_s")
        ceiling = (copy, f"copy: {copy:.0f} GB/s") if copy else None
        title = f"{op}, {mode}, batch {batch}, {dtype}"
        chart = svg.dots(title, series, "MB that must be moved", "GB/s", ceiling)
        figures.append(_figure(title, chart, names))
    note = "Bytes a fused kernel must move, over the time taken. Above the copy bandwidth: served by caches."
    return _grid("Roofline", figures, note)


def _failures(rows: list[Row]) -> str:
    cells = [
        (
            escape(f"{row['provider']}: {job_name(job(row))}"),
            escape(f"{row['status']}: {row.get('reason', '')}"),
        )
        for row in rows
    ]
    return f"<h3>Not measured</h3>{_table(('what', 'why'), cells)}"


def _environment(environments: Sequence[Row]) -> str:
    parts = []
    for facts in environments:
        rows = [(escape(str(key)), escape(str(value))) for key, value in facts.items() if value is not None]
        parts.append(
            f"<details><summary>{escape(str(facts['file']))}</summary>{_table(('fact', 'value'), rows)}</details>"
        )
    return "<h3>Environment</h3>" + "".join(parts)
