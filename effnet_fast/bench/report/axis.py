"""Scales from data to pixels with round ticks, and numbers short enough for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Room left on a logarithmic axis beyond the data, as a part of its length.
MARGIN = 0.04


class Axis:
    """A scale of positive data, linear from zero or logarithmic around the data."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        low, high = min(values), max(values)
        self.log, self._start, self._end = log, start, end
        if log:
            self._low, self._high = _log_range(low, high)
            self.ticks = _log_ticks(math.exp(self._low), math.exp(self._high))
        else:
            step = _round_step(high / 5 or 1.0)
            self.ticks = [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]
            self._low, self._high = 0.0, self.ticks[-1] or 1.0

    @property
    def ends(self) -> tuple[float, float]:
        """The values at both ends."""
        return (math.exp(self._low), math.exp(self._high)) if self.log else (self._low, self._high)

    def __call__(self, value: float) -> float:
        """Where on the axis a value is, in pixels."""
        position = math.log(value) if self.log else value
        share = (position - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _log_range(low: float, high: float) -> tuple[float, float]:
    """Logarithms of the ends: at least a factor of two apart, so that noise does not look like a trend."""
    first, last = math.log(low), math.log(high)
    missing = max(0.0, math.log(2.0) - (last - first)) / 2
    first, last = first - missing, last + missing
    margin = MARGIN * (last - first)
    return first - margin, last + margin


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1.0, 2.0, 2.5, 5.0) if m * power >= rough), 10.0 * power)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends: few enough not to touch, and never fewer than two."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0))
    found: list[float] = []
    for multiples in steps:
        ticks = [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]
        if found and len(found) >= 2 and len(ticks) > 7:
            break
        found = ticks
    return found


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


def measured(value: float) -> str:
    """Beside others of its kind: 3 digits or more, zeros at the end kept, no letters for thousands."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
