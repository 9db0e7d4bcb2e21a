"""One self-contained page: inline SVG and CSS, no scripts, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .. import results
from ..stats import geometric_mean
from . import charts, provenance
from .data import Device, Row, duels, group, job
from .markup import job_name, ratio, scientific, table
from .style import CSS


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
    parts.append(provenance.banner(device))
    models = results.measured(device.models)
    if models:
        parts += [_headline(device), _summary(device)]
        parts += [charts.throughput(models), charts.memory(models), charts.errors(models)]
    if results.measured(device.shapes):
        parts += [charts.speedups(device.shapes), charts.roofline(device.shapes)]
    failed = [row for row in device.models if not row.get("median_ms")]
    if failed:
        parts.append(_failures(failed))
    parts += [provenance.reproduce(device), provenance.environment(device.environments)]
    return "<section>" + "".join(parts) + "</section>"


def _subtitle(device: Device) -> str:
    last = device.environments[-1]
    dates = sorted({str(facts.get("date", ""))[:10] for facts in device.environments})
    parts = [" and ".join(dates), f"PyTorch {last.get('torch', '?')}"]
    parts += [str(last[name]) for name in ("isa",) if last.get(name)]
    return ", ".join(parts)


def _headline(device: Device) -> str:
    """One line for each mode and dtype: the mean speed-up, and how many jobs are lost."""
    kinds = group(duels(device.models, job), lambda duel: (duel.job[1], duel.job[4]))
    items = []
    for (mode, dtype), found in kinds.items():
        speeds = [duel.speedup for duel in found]
        lost = sum(speed < 1 for speed in speeds)
        spread = f"{min(speeds):.2f}&times; to {max(speeds):.2f}&times;"
        several = f"geometric mean of {len(found)}; {lost} lost, {spread}" if len(found) > 1 else "one job"
        mean = f"<b>{geometric_mean(speeds):.2f}&times;</b> the fastest baseline"
        items.append(f"<li>{escape(mode)}, {escape(dtype)}: {mean} ({several})</li>")
    return f'<ul class="headline">{"".join(items)}</ul>' if items else ""


def _summary(device: Device) -> str:
    rows = []
    beyond = False
    for duel in duels(device.models, job):
        fraction, error = duel.ours.get("roofline"), duel.ours.get("max_error")
        beyond = beyond or (fraction or 0.0) > 1.0
        rows.append(
            (
                escape(job_name(duel.job)),
                ratio(duel),
                f"{duel.ours['images_per_second']:,.1f}",
                f"{duel.baseline['images_per_second']:,.1f}",
                "" if fraction is None else f"{100 * fraction:.0f} %" + ("*" if fraction > 1.0 else ""),
                "" if error is None else scientific(error),
                escape(duel.ours["provider"]),
                escape(duel.baseline["provider"]),
            )
        )
    if not rows:
        return ""
    columns = (
        *("job", "speed-up", "ours, images/s", "baseline, images/s", "of roofline", "error"),
        *("fastest of ours", "fastest baseline"),
    )
    notes = [
        "Speed-up: against the fastest baseline measured; below 1 is a loss. Of roofline: the least time the fused "
        "design needs at the rates measured here, over the time taken. Error: of the logits (training: of the stem's "
        "gradient), relative to fp64."
    ]
    if beyond:
        notes.append(
            "* More than the roofline: it counts every tensor through memory once, and multiplications at the speed "
            "of PyTorch's own matrix product. Tensors that stay in caches, or faster products, go beyond it."
        )
    text = "".join(f'<p class="muted">{note}</p>' for note in notes)
    return f"<h3>Summary</h3>{table(columns, rows, (0, 6, 7))}{text}"


def _failures(rows: list[Row]) -> str:
    cells = [
        (
            escape(f"{row['provider']}: {job_name(job(row))}"),
            escape(f"{row['status']}: {row.get('reason', '')}"),
        )
        for row in rows
    ]
    return f"<h3>Not measured</h3>{table(('what', 'why'), cells, (0, 1))}"
