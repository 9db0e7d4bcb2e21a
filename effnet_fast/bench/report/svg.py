"""Three kinds of chart as inline SVG: lines, horizontal bars, dots. Colours are CSS classes of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from .axis import Axis, number

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46
BAR_HEIGHT, LABEL_WIDTH, VALUE_WIDTH = 20, 186, 62

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


class Roof(NamedTuple):
    """What a device allows: work a second, and work a second for each unit of x below the ridge."""

    level: float
    slope: float

    def at(self, x: float) -> float:
        return min(self.level, self.slope * x)


def _text(x: float, y: float, text: str, anchor: str = "middle", style: str = "axis", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _polyline(points: Sequence[Point], style: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" class="{style}"/>'


def _svg(body: Sequence[str], label: str, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, x_ticks: Sequence[float]) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [_line(LEFT, bottom, WIDTH - RIGHT, bottom, "grid")]
    for tick in y.ticks:
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"))
        parts.append(_text(LEFT - 6, y(tick) + 4, number(tick), "end"))
    parts += [_text(x(tick), bottom + 18, number(tick)) for tick in x_ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label))
    middle = (TOP + bottom) / 2
    return [*parts, _text(14, middle, y_label, more=f' transform="rotate(-90 14 {middle:.0f})"')]


def lines(label: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines over a logarithmic x with a tick at every x that occurs; y is logarithmic where it spans a decade."""
    xs = sorted({px for s in series for px, _ in s.points})
    ys = [py for s in series for _, py in s.points]
    x = Axis(xs, LEFT, WIDTH - RIGHT, log=True)
    y = Axis(ys, HEIGHT - BOTTOM, TOP, log=min(ys) > 0 and max(ys) > 8 * min(ys))
    parts = _frame(x, y, _axis_label(x_label, x), _axis_label(y_label, y), xs)
    for name, style, points in series:
        ordered = sorted(points)
        parts.append(_polyline([(x(px), y(py)) for px, py in ordered], f"line {style}"))
        parts += [
            _dot(x(px), y(py), style, f"{name}: {number(py)} {y_label} at {x_label} {number(px)}")
            for px, py in ordered
        ]
    return _svg(parts, label)


def dots(label: str, series: Sequence[Series], x_label: str, y_label: str, roof: Roof | None = None) -> str:
    """Dots on two logarithmic axes, below a roof: a slope up to the ridge, then a level."""
    xs = [px for s in series for px, _ in s.points]
    ys = [py for s in series for _, py in s.points]
    x = Axis(xs, LEFT, WIDTH - RIGHT, log=True)
    first, last = x.ends
    if roof:
        ys += [roof.at(first), roof.at(last)]
    y = Axis(ys, HEIGHT - BOTTOM, TOP, log=True)
    parts = _frame(x, y, _axis_label(x_label, x), _axis_label(y_label, y), x.ticks)
    for name, style, points in series:
        parts += [
            _dot(x(px), y(py), style, f"{name}: {number(py)} {y_label} at {number(px)} {x_label}")
            for px, py in points
        ]
    if roof:
        ridge = min(max(roof.level / roof.slope, first), last)
        # Beneath the dots.
        parts.insert(0, _polyline([(x(px), y(roof.at(px))) for px in (first, ridge, last)], "ceiling"))
    return _svg(parts, label)


def _axis_label(label: str, axis: Axis) -> str:
    return f"{label} (logarithmic)" if axis.log else label


def _dot(x: float, y: float, style: str, hint: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" class="dot {style}"><title>{escape(hint)}</title></circle>'


def bars(label: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero, from the top."""
    x = Axis([row.value for row in rows], LABEL_WIDTH, WIDTH - VALUE_WIDTH, log=False)
    parts: list[str] = []
    for index, row in enumerate(rows):
        end = max(x(row.value), LABEL_WIDTH + 1.0)
        parts += [_label(index, row), _bar(index, row, LABEL_WIDTH, end)]
        parts.append(_text(end + 6, _base(index), row.text, "start", "value"))
    return _svg(parts, label, _height(rows))


def ratios(label: str, rows: Sequence[Bar]) -> str:
    """Bars on a logarithmic scale that begin at 1: to the right what is more, to the left what is less."""
    values = [row.value for row in rows]
    x = Axis([*values, 1.0], LABEL_WIDTH + VALUE_WIDTH - 10, WIDTH - VALUE_WIDTH + 10, log=True)
    parts = [_line(x(1.0), TOP - 4, x(1.0), _height(rows) - 6, "one")]
    for index, row in enumerate(rows):
        one, end = x(1.0), x(row.value)
        parts += [_label(index, row), _bar(index, row, min(one, end), max(one, end, min(one, end) + 1.0))]
        left = row.value < 1
        place = end - 6 if left else end + 6
        parts.append(_text(place, _base(index), row.text, "end" if left else "start", "value"))
    return _svg(parts, label, _height(rows))


def strips(label: str, rows: Sequence[Bar]) -> str:
    """A dot for each row on a logarithmic scale, where bars would need a zero."""
    x = Axis([row.value for row in rows], LABEL_WIDTH + 8, WIDTH - VALUE_WIDTH, log=True)
    parts: list[str] = []
    for index, row in enumerate(rows):
        middle = _base(index) - 4
        parts += [_label(index, row), _line(LABEL_WIDTH, middle, WIDTH - RIGHT, middle, "grid")]
        parts.append(_dot(x(row.value), middle, row.style, row.hint or f"{row.label}: {row.text}"))
        parts.append(_text(x(row.value) + 8, _base(index), row.text, "start", "value"))
    return _svg(parts, label, _height(rows))


def _height(rows: Sequence[Bar]) -> int:
    return TOP + BAR_HEIGHT * len(rows) + 8


def _base(index: int) -> int:
    """The baseline of a row's text."""
    return TOP + BAR_HEIGHT * index + 14


def _label(index: int, row: Bar) -> str:
    return _text(
        LABEL_WIDTH - 6, _base(index), row.label, "end", "axis long" if len(row.label) > 20 else "axis"
    )


def _bar(index: int, row: Bar, start: float, end: float) -> str:
    hint = escape(row.hint or f"{row.label}: {row.text}")
    return (
        f'<rect x="{start:.1f}" y="{_base(index) - 11}" width="{end - start:.1f}" height="{BAR_HEIGHT - 6}" '
        f'rx="2" class="bar {row.style}"><title>{hint}</title></rect>'
    )
