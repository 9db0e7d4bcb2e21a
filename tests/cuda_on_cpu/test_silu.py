"""Why the kernels' SiLU takes two special-function operations: the documented error of the one-operation form is too large.

``silu(n) = h + h * tanh(h)``, h = n / 2, with ``tanh.approx.f32``: relative error of tanh at most 2^-11 (PTX ISA). The form in use,
``n / (1 + exp(-n))``, has ``ex2.approx`` (2 ulp) and ``rcp.approx`` (1 ulp).
"""

from __future__ import annotations

import torch
from torch import Tensor

TANH_ERROR = 2.0**-11
# ex2.approx and rcp.approx, and the rounding of n * log2(e), which the exponential turns into |n| * 2^-24.
UNIT = 2.0**-24


def every_bfloat16() -> Tensor:
    """All finite values of magnitude at most 80, where silu is a normal number, as fp64."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16).double()
    return values[values.isfinite() & (values.abs() <= 80) & (values != 0)]


def half_ulp(values: Tensor) -> Tensor:
    """Half the distance of neighbouring bf16 values around ``values``."""
    _, exponent = torch.frexp(values)
    return torch.ldexp(torch.full_like(values, 0.5), (exponent - 8).clamp_min(-133))


def test_one_operation_is_not_enough() -> None:
    n = every_bfloat16()
    silu = n * torch.sigmoid(n)
    h = n / 2
    worst = (h * torch.tanh(h)).abs() * TANH_ERROR
    enough = worst < half_ulp(silu)
    assert enough[n > 0].all()
    assert not enough[(n < -2.5) & (n > -20)].any()
    at_minus_8 = worst[n == -8] / silu[n == -8].abs()
    assert at_minus_8.item() > 0.5


def test_two_operations_are() -> None:
    n = every_bfloat16()
    silu = n * torch.sigmoid(n)
    e = torch.exp(-n)
    # Relative: of the exponential, weighted by its part in 1 + e, then addition, reciprocal and product.
    relative = e / (1 + e) * UNIT * (4 + n.abs() * 2) + 4 * UNIT
    assert (relative * silu.abs() < half_ulp(silu) / 16).all()
