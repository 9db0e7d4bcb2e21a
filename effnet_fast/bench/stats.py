"""Medians, spreads, and the verdict on two measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import EffnetFastError

#: A change smaller than this is called the same even where the spreads are smaller still.
SMALLEST_CHANGE = 0.02


class Spread(NamedTuple):
    """The median of some timings with the range that holds the middle 60 % of them."""

    median: float
    p20: float
    p80: float


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between the closest ranks, as ``numpy.quantile`` does by default.

    Raises:
        EffnetFastError: no values, or ``q`` outside 0 to 1.
    """
    if not values or not 0.0 <= q <= 1.0:
        raise EffnetFastError(f"quantile: expected values and 0 <= q <= 1, got {len(values)} values, q={q!r}")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(values: Sequence[float]) -> Spread:
    """Median, 20th and 80th percentile."""
    return Spread(quantile(values, 0.5), quantile(values, 0.2), quantile(values, 0.8))


def verdict(old: Spread, new: Spread) -> str:
    """``"better"``, ``"worse"`` or ``"same"`` for times: smaller is better.

    A difference counts only where the two ranges from the 20th to the 80th percentile do not touch and the
    medians differ by more than :data:`SMALLEST_CHANGE`.
    """
    if new.p80 < old.p20 and new.median < old.median * (1.0 - SMALLEST_CHANGE):
        return "better"
    if new.p20 > old.p80 and new.median > old.median * (1.0 + SMALLEST_CHANGE):
        return "worse"
    return "same"


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; the right mean for ratios."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))
