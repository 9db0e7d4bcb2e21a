"""The property-based tests can fail: memory written or read beside a tensor, and wrong values, are found."""

from __future__ import annotations

import random
from collections.abc import Callable

import compositions
import pytest
import torch
from fuzzing import Fuzzer
from guarded import LAYOUTS, guarded
from hypothesis import strategies as st
from op_cases import Inputs, Memory, judge
from torch import Tensor

from effnet_fast import ops

NORMAL = Memory(5, ("channels_last", "dense", "sliced"), 1, exact=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_view_has_its_values_and_nan_around_it(layout: str, dtype: torch.dtype) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        shape = [rng.choice((1, 2, 3, 5)) for _ in range(4)]
        values = torch.randn(shape).to(dtype)
        given = guarded(values, layout, 3, rng)
        assert given.view.shape == values.shape and given.view.isfinite().all()
        if layout != "expanded":
            assert torch.equal(given.view, values)
        inside = torch.zeros_like(given.buffer, dtype=torch.bool)
        inside.as_strided(given.view.shape, given.view.stride(), given.view.storage_offset()).fill_(True)
        assert given.buffer[~inside].isnan().all() and (~inside)[:64].all() and (~inside)[-64:].all()
        given.check("x")
        for place in (0, given.view.storage_offset() - 1, len(given.buffer) - 1):
            given.buffer[place] = 1.0
            with pytest.raises(AssertionError, match="the memory beside it changed"):
                given.check("x")
            given.buffer[place] = float("nan")


def _pointwise(change: Callable[[Tensor], Tensor]) -> None:
    inputs = Inputs(NORMAL, torch.float32)
    inputs.tensor(2, 9, 5, 4)
    inputs.tensor(7, 9)
    plain = {"in_act": "none", "act": "silu", "pool": False, "stats": False}

    def op(t: list[Tensor | None]) -> list[Tensor]:
        return [change(ops.pointwise(*t, act="silu").y)]

    def composed(t: list[Tensor | None]) -> list[Tensor]:
        return compositions.pointwise(*t, *(None,) * 5, **plain)

    judge("reference", inputs, op, composed)


def test_a_right_op_passes() -> None:
    _pointwise(lambda y: y)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda y: y * 1.0001, "output 0"),
        (lambda y: torch.where(torch.arange(4) == 3, torch.nan, y), "output 0"),
        (lambda y: y + 1e-4 * (y - y.detach()), "gradient"),
        (lambda y: y.detach() if y.requires_grad else y, "gradients, expected"),
    ],
    ids=["value", "nan-in-the-last-column", "gradient", "no-gradient"],
)
def test_a_wrong_op_is_found(change: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        _pointwise(change)


def test_counting_and_the_smallest_failure() -> None:
    fuzz = Fuzzer(None)
    seen: list[int] = []
    fuzz(seen.append, st.integers(0, 1000), 30)
    assert fuzz.cases == len(seen) == 30

    def check(n: int) -> None:
        assert n < 17

    with pytest.raises(AssertionError) as caught:
        fuzz(check, st.integers(0, 1000), 200)
    assert "17" in str(caught.value.__notes__)
