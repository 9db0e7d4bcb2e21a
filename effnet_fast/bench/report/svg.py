"""Three kinds of chart as inline SVG: lines, horizontal bars, dots. Colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 42
BAR_HEIGHT, LABEL_WIDTH = 20, 186

Point = tuple[float, float]


class Series(NamedTuple):
    """Points of one provider, in the colour of CSS class ``style``."""

    name: str
    style: str
    points: Sequence[Point]


class Bar(NamedTuple):
    """One bar: ``text`` is written at its end, ``hint`` shown when it is pointed at."""

    label: str
    value: float
    style: str
    text: str
    hint: str = ""


class _Axis:
    """A linear or logarithmic scale from data to pixels, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        low, high = min(values), max(values)
        self.log, self._start, self._end = log, start, end
        if log:
            self.ticks = _log_ticks(low, high)
            low, high = min(low, self.ticks[0]), max(high, self.ticks[-1])
            self._low, self._high = math.log(low), math.log(high)
        else:
            step = _round_step(high / 5 or 1.0)
            self.ticks = [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]
            self._low, self._high = 0.0, self.ticks[-1] or 1.0

    def __call__(self, value: float) -> float:
        position = math.log(value) if self.log else value
        span = self._high - self._low
        share = (position - self._low) / span if span else 0.5
        return self._start + share * (self._end - self._start)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1.0, 2.0, 2.5, 5.0) if m * power >= rough), 10.0 * power)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1.0, 2.0, 5.0), (1.0,)):
        ticks = [m * 10.0**d for d in decades for m in multiples]
        below = [t for t in ticks if t <= low * 1.0001][-1:]
        above = [t for t in ticks if t >= high * 0.9999][:1]
        ticks = below + [t for t in ticks if low * 1.0001 < t < high * 0.9999] + above
        if len(ticks) <= 8:
            break
    return ticks


def number(value: float) -> str:
    """Short: 3 digits, thousands as k, millions as M; very small ones as powers of ten."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "middle", style: str = "axis", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _svg(body: Sequence[str], label: str, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str, x_ticks: Sequence[float]) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"))
        parts.append(_text(LEFT - 6, y(tick) + 4, number(tick), "end"))
    parts += [_text(x(tick), bottom + 17, number(tick)) for tick in x_ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label))
    middle = (TOP + bottom) / 2
    return [*parts, _text(13, middle, y_label, more=f' transform="rotate(-90 13 {middle:.0f})"')]


def lines(label: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines over a logarithmic x with a tick at every x that occurs; y is logarithmic where it spans a decade."""
    xs = sorted({px for s in series for px, _ in s.points})
    ys = [py for s in series for _, py in s.points]
    x = _Axis(xs, LEFT + 10, WIDTH - RIGHT - 10, log=True)
    y = _Axis(ys, HEIGHT - BOTTOM, TOP, log=min(ys) > 0 and max(ys) > 8 * min(ys))
    parts = _frame(x, y, x_label, y_label, xs)
    for name, style, points in series:
        ordered = sorted(points)
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in ordered)
        parts.append(f'<polyline points="{path}" class="line {style}"/>')
        parts += [_dot(x(px), y(py), style, f"{name}: {number(py)} at {number(px)}") for px, py in ordered]
    return _svg(parts, label)


def dots(
    label: str, series: Sequence[Series], x_label: str, y_label: str, ceiling: tuple[float, str] | None = None
) -> str:
    """Dots on two logarithmic axes, below a horizontal ceiling with its name."""
    xs = [px for s in series for px, _ in s.points]
    ys = [py for s in series for _, py in s.points] + ([ceiling[0]] if ceiling else [])
    x = _Axis(xs, LEFT + 10, WIDTH - RIGHT - 10, log=True)
    y = _Axis(ys, HEIGHT - BOTTOM, TOP + 10, log=True)
    parts = _frame(x, y, x_label, y_label, x.ticks)
    if ceiling:
        parts.append(_line(LEFT, y(ceiling[0]), WIDTH - RIGHT, y(ceiling[0]), "ceiling"))
        parts.append(_text(WIDTH - RIGHT, y(ceiling[0]) - 5, ceiling[1], "end"))
    for name, style, points in series:
        parts += [
            _dot(x(px), y(py), style, f"{name}: {number(py)} {y_label} at {number(px)}") for px, py in points
        ]
    return _svg(parts, label)


def _dot(x: float, y: float, style: str, hint: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" class="dot {style}"><title>{escape(hint)}</title></circle>'


def bars(label: str, rows: Sequence[Bar], reference: float | None = None, log: bool = False) -> str:
    """Horizontal bars from the top; ``reference`` draws a vertical line at that value.

    ``log``: dots on a logarithmic scale instead of bars, which would need a zero.
    """
    height = TOP + BAR_HEIGHT * len(rows) + 8
    values = [row.value for row in rows] + ([reference] if reference is not None else [])
    x = _Axis(values, LABEL_WIDTH, WIDTH - 62, log)
    parts: list[str] = []
    ends: list[str] = []
    for index, row in enumerate(rows):
        y = TOP + BAR_HEIGHT * index
        parts.append(_text(LABEL_WIDTH - 6, y + 14, row.label, "end"))
        hint = escape(row.hint or f"{row.label}: {row.text}")
        end = x(row.value)
        if log:
            parts.append(_line(LABEL_WIDTH, y + 10, end, y + 10, "grid"))
            parts.append(_dot(end, y + 10, row.style, row.hint))
        else:
            parts.append(
                f'<rect x="{LABEL_WIDTH}" y="{y + 3}" width="{max(end - LABEL_WIDTH, 1):.1f}" '
                f'height="{BAR_HEIGHT - 6}" rx="2" class="bar {row.style}"><title>{hint}</title></rect>'
            )
        ends.append(_text(end + 7, y + 14, row.text, "start", "value"))
    if reference is not None:
        parts.append(_line(x(reference), TOP - 4, x(reference), height - 6, "ceiling"))
    # Last, so that they are written over the line.
    return _svg([*parts, *ends], label, height)
