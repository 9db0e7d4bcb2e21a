"""EfficientNet B0 to B7 as one table.

Sources: Tan and Le 2019, table 1 (stages) and their released code (multipliers, resolutions, dropout); the
BatchNorm settings are those of torchvision's ``efficientnet_b*``.
"""

from __future__ import annotations

import difflib
import math
from typing import NamedTuple

from ..errors import EffnetFastError, UnknownModelError
from .scaling import round_filters, round_repeats


class Stage(NamedTuple):
    """A run of MBConv blocks; the stride belongs to the first block, the others keep size and channels."""

    expand_ratio: float
    kernel_size: int
    stride: int
    in_channels: int
    out_channels: int
    repeats: int


class Variant(NamedTuple):
    """One member of the family, as multipliers of B0."""

    width_mult: float
    depth_mult: float
    resolution: int
    dropout: float
    bn_eps: float
    bn_momentum: float


BASE_STAGES = (
    Stage(1, 3, 1, 32, 16, 1),
    Stage(6, 3, 2, 16, 24, 2),
    Stage(6, 5, 2, 24, 40, 2),
    Stage(6, 3, 2, 40, 80, 3),
    Stage(6, 5, 1, 80, 112, 3),
    Stage(6, 5, 2, 112, 192, 4),
    Stage(6, 3, 1, 192, 320, 1),
)

VARIANTS = {
    "b0": Variant(1.0, 1.0, 224, 0.2, 1e-5, 0.1),
    "b1": Variant(1.0, 1.1, 240, 0.2, 1e-5, 0.1),
    "b2": Variant(1.1, 1.2, 260, 0.3, 1e-5, 0.1),
    "b3": Variant(1.2, 1.4, 300, 0.3, 1e-5, 0.1),
    "b4": Variant(1.4, 1.8, 380, 0.4, 1e-5, 0.1),
    "b5": Variant(1.6, 2.2, 456, 0.4, 1e-3, 0.01),
    "b6": Variant(1.8, 2.6, 528, 0.5, 1e-3, 0.01),
    "b7": Variant(2.0, 3.1, 600, 0.5, 1e-3, 0.01),
}


def scaled_stages(width_mult: float = 1.0, depth_mult: float = 1.0) -> tuple[Stage, ...]:
    """B0's stages with channels and repeats scaled.

    Raises:
        EffnetFastError: a multiplier that is not a positive finite number.
    """
    for name, value in (("width_mult", width_mult), ("depth_mult", depth_mult)):
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise EffnetFastError(f"efficientnet: {name}: expected a positive number, got {value!r}")
    return tuple(
        stage._replace(
            in_channels=round_filters(stage.in_channels, width_mult),
            out_channels=round_filters(stage.out_channels, width_mult),
            repeats=round_repeats(stage.repeats, depth_mult),
        )
        for stage in BASE_STAGES
    )


def list_models() -> list[str]:
    """Names that :func:`create` takes: ``["b0", ..., "b7"]``."""
    return list(VARIANTS)


def canonical_name(name: str) -> str:
    """``"b3"`` for ``"b3"``, ``"B3"``, ``"efficientnet_b3"`` or ``"efficientnet-b3"``.

    Raises:
        UnknownModelError: any other name; the message names all, and the one that is closest.
    """
    if not isinstance(name, str):
        raise UnknownModelError(f"create: name: expected a string such as 'b0', got {type(name).__name__}")
    short = name.strip().lower().replace("-", "_").removeprefix("efficientnet_")
    if short in VARIANTS:
        return short
    # Of several that are equally close ("b8") nobody can say which was meant, and all are named anyway.
    close = difflib.get_close_matches(short, VARIANTS, n=2, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if len(close) == 1 else ""
    raise UnknownModelError(f"create: unknown model {name!r}; {hint}known: {', '.join(VARIANTS)}")
