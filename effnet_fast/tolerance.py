"""How the package's tests judge numbers: one table of tolerances and one rule.

The rule: against the fp64 truth, an error of at most twice PyTorch's own in the same precision, plus a floor for
where PyTorch happens to be exact. Absolute tolerances cannot be right for sums of 9 and of 3840 terms alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Largest relative rounding error of one operation, per dtype.
UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}

#: How many roundings of the largest value are always forgiven.
FLOOR_ROUNDINGS = 4.0


def error(actual: Tensor, truth: Tensor) -> float:
    """Largest absolute deviation from the truth; infinite if the places of NaN or infinities differ."""
    actual, truth = actual.detach().double(), truth.detach().double()
    assert actual.shape == truth.shape, f"shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    special = ~truth.isfinite()
    if not torch.equal(actual[special].nan_to_num(), truth[special].nan_to_num()) or not bool(
        actual[~special].isfinite().all()
    ):
        return float("inf")
    return (actual - truth)[~special].abs().max().item() if (~special).any() else 0.0


def allowed(baseline: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Twice the error of ``baseline`` plus a few roundings of the largest value in ``dtype``."""
    finite = truth.detach().double()[truth.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return 2.0 * error(baseline, truth) + FLOOR_ROUNDINGS * UNIT_ROUNDOFF[dtype] * largest


def assert_accurate(
    name: str, actual: Tensor, baseline: Tensor, truth: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Assert the rule of this module.

    Args:
        name: of the tensor, for the message.
        actual: what is tested.
        baseline: the same from PyTorch in the same precision.
        truth: the same in fp64.
        dtype: the precision of the computation, by default the dtype of ``actual``.
    """
    dtype = dtype or actual.dtype
    got, limit = error(actual, truth), allowed(baseline, truth, dtype)
    assert got <= limit, (
        f"{name}: error {got:.3e} exceeds {limit:.3e} ({dtype}, twice PyTorch's plus the floor)"
    )
