"""Compound scaling: how EfficientNet grows depth, width and resolution together.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019),
equation 3: ``d = alpha**phi``, ``w = beta**phi``, ``r = gamma**phi`` with ``alpha * beta**2 * gamma**2``
close to 2 and all three greater than 1, so that each step of phi doubles the cost.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

from ..errors import EffnetFastError

#: Input size of the base network (B0), in pixels.
BASE_INPUT_SIZE = 224

#: How far alpha * beta**2 * gamma**2 may lie from 2 without a warning; the paper's own 1.92 is within it.
COST_TOLERANCE = 0.15


class CompoundScaling(NamedTuple):
    """Multipliers relative to the base network."""

    depth: float
    width: float
    resolution: float
    input_size: int  # pixels, rounded
    flops: float  # depth * width**2 * resolution**2


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise EffnetFastError(f"compound_scaling: {name}: expected a finite number, got {value!r}")
    return float(value)


def compound_scaling(
    phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15
) -> CompoundScaling:
    """Depth, width and resolution multipliers for the compound coefficient ``phi``.

    Args:
        phi: how much more is spent than on the base network; cost grows as ``(alpha*beta**2*gamma**2)**phi``.
        alpha: base of depth.
        beta: base of width; cost grows with its square.
        gamma: base of resolution; cost grows with its square.

    Raises:
        EffnetFastError: a base that is not greater than 1, a negative or non-finite ``phi``, or a result that
            is too large for a float.

    Warns:
        UserWarning: ``alpha * beta**2 * gamma**2`` is not about 2, so a step of phi does not double the cost.

    Example:
        >>> compound_scaling(1).input_size
        258
    """
    phi = _number("phi", phi)
    if phi < 0:
        raise EffnetFastError(f"compound_scaling: phi: expected a number >= 0, got {phi:g}")
    bases = {name: _number(name, v) for name, v in (("alpha", alpha), ("beta", beta), ("gamma", gamma))}
    for name, base in bases.items():
        if base <= 1:
            raise EffnetFastError(f"compound_scaling: {name}: expected a number above 1, got {base:g}")
    try:
        depth, width, resolution = (base**phi for base in bases.values())
        flops = depth * width**2 * resolution**2
        step = alpha * beta**2 * gamma**2
        input_size = round(BASE_INPUT_SIZE * resolution)
    except OverflowError:
        flops = math.inf
    if not math.isfinite(flops):
        raise EffnetFastError(f"compound_scaling: phi={phi:g} gives multipliers too large for a float")
    if abs(step - 2) > COST_TOLERANCE:
        warnings.warn(
            f"compound_scaling: alpha * beta**2 * gamma**2 = {step:.3g}, not about 2: "
            f"each step of phi multiplies the cost by {step:.3g}",
            stacklevel=2,
        )
    return CompoundScaling(depth, width, resolution, input_size, flops)


def round_filters(channels: float, width_mult: float = 1.0, divisor: int = 8) -> int:
    """``channels * width_mult`` rounded to a multiple of ``divisor``, never down by more than 10 %."""
    scaled = channels * width_mult
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth_mult: float = 1.0) -> int:
    """``repeats * depth_mult`` rounded up."""
    return math.ceil(repeats * depth_mult)
