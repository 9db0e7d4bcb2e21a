"""One self-contained page: inline SVG and CSS, no scripts, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .. import results
from ..providers import PROVIDERS, is_ours
from ..stats import geometric_mean
from . import svg
from .axis import number
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
        parts += [_headline(device), _summary(device), _throughput(models), _memory(models), _errors(models)]
    if results.measured(device.shapes):
        parts += [_speedups(device.shapes), _roofline(device.shapes)]
    failed = [row for row in device.models if not row.get("median_ms")]
    if failed:
        parts.append(_failures(failed))
    parts.append(_environment(device.environments))
    return "<section>" + "".join(parts) + "</section>"


def _subtitle(device: Device) -> str:
    last = device.environments[-1]
    dates = sorted({str(facts.get("date", ""))[:10] for facts in device.environments})
    parts = [" and ".join(dates), f"PyTorch {last.get('torch', '?')}"]
    parts += [str(last[name]) for name in ("isa",) if last.get(name)]
    return ", ".join(parts)


def job_name(key: tuple[Any, ...]) -> str:
    """``b0, infer, batch 1, 224, fp32``."""
    model, mode, batch, resolution, dtype = key
    return f"{model}, {mode}, batch {batch}, {resolution} px, {dtype}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Cells are HTML. ``numbers``: all but the first column are aligned to the right; ``words``: lines wrap."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(title: str, chart: str, legend: Sequence[str] = (), line: str = "") -> str:
    """``line``: what a dashed line in the chart stands for."""
    keys = [f'<li><i class="{style_of(name)}"></i>{escape(name)}</li>' for name in legend]
    keys += [f'<li><i class="dashed"></i>{escape(line)}</li>'] if line else []
    keyed = f"<ul>{''.join(keys)}</ul>" if keys else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}{keyed}</figure>"


def _order(names: set[str]) -> list[str]:
    known = list(PROVIDERS)
    return sorted(names, key=lambda name: (is_ours(name), known.index(name) if name in known else 99, name))


def ratio(duel: Duel) -> str:
    """The speed-up as HTML, marked as a win, a loss, or neither."""
    kind = "win" if duel.speedup > 1.02 else "loss" if duel.speedup < 0.98 else "tie"
    return f'<b class="{kind}">{duel.speedup:.2f}&times;</b>'


def _headline(device: Device) -> str:
    """One line for each mode and dtype: the mean speed-up, and how many jobs are lost."""
    kinds = group(duels(device.models, job), lambda duel: (duel.job[1], duel.job[4]))
    items = []
    for (mode, dtype), found in kinds.items():
        speeds = [duel.speedup for duel in found]
        lost = sum(speed < 1 for speed in speeds)
        items.append(
            f"<li>{escape(mode)}, {escape(dtype)}: <b>{geometric_mean(speeds):.2f}&times;</b> the fastest baseline "
            f"(geometric mean of {len(found)}; {lost} lost, {min(speeds):.2f}&times; to {max(speeds):.2f}&times;)</li>"
        )
    return f'<ul class="headline">{"".join(items)}</ul>' if items else ""


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
                "" if error is None else scientific(error),
            )
        )
    if not rows:
        return ""
    columns = (
        *("job", "speed-up", "images/s", "fastest of effnet_fast", "images/s", "fastest baseline"),
        *("of roofline", "error"),
    )
    note = (
        "Speed-up: against the fastest baseline measured; below 1 is a loss. Of roofline: the least time the fused "
        "design needs at the rates measured here, over the time taken. Error: of the logits (training: of the stem's "
        "gradient), relative to fp64."
    )
    return f'<h3>Summary</h3>{_table(columns, rows)}<p class="muted">{note}</p>'


def scientific(value: float) -> str:
    """Such as ``1.3e-6``."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


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
                svg.Bar(row["provider"], row[quantity], style_of(row["provider"]), number(row[quantity]))
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
    note = "On CUDA what PyTorch allocated at most; on the CPU the peak of the process while it runs, over what it had before the model was made: the runtime's code counts."
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
                svg.Bar(name, worst[name], style_of(name), scientific(worst[name]))
                for name in _order(set(worst))
            ]
            figures.append(_figure(title, svg.strips(title, chart)))
    return _grid(
        "Error against fp64",
        figures,
        "Largest deviation over the largest value, the worst of all batch sizes; logarithmic, less is better.",
    )


def _speedups(rows: list[Row]) -> str:
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
        figures.append(_figure(title, svg.ratios(title, chart)))
    return _grid(
        "Speed-up of each shape over the fastest baseline", figures, "Logarithmic. Red bars are losses."
    )


def _roofline(rows: list[Row]) -> str:
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
        figures.append(_figure(title, chart, names, line))
    note = (
        "One dot a shape: its multiplications and additions, over the bytes a fused kernel must move and over the "
        "time taken. The line: copy bandwidth and matrix products as measured in the same run. A dot above it was "
        "served by caches, or computes faster than PyTorch's own matrix product."
    )
    return _grid("Roofline", figures, note)


def _failures(rows: list[Row]) -> str:
    cells = [
        (
            escape(f"{row['provider']}: {job_name(job(row))}"),
            escape(f"{row['status']}: {row.get('reason', '')}"),
        )
        for row in rows
    ]
    return f"<h3>Not measured</h3>{_table(('what', 'why'), cells, 'words')}"


def _environment(environments: Sequence[Row]) -> str:
    parts = []
    for facts in environments:
        rows = [(escape(str(key)), escape(str(value))) for key, value in facts.items() if value is not None]
        parts.append(
            f"<details><summary>{escape(str(facts['file']))}</summary>{_table(('fact', 'value'), rows, 'words')}</details>"
        )
    return "<h3>Environment</h3>" + "".join(parts)
