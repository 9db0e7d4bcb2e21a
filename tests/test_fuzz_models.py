"""Random surgery on small models: whatever is done to a patched model, it computes what the stock one does then."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import surgery_parts  # noqa: F401 (registers operations)
import surgery_state  # noqa: F401
import tiny_models
import torch
from hypothesis import strategies as st
from surgery import OPERATIONS, NothingToDo
from torch import Tensor, nn

import effnet_fast
from effnet_fast import use_backend
from effnet_fast.backend import native

#: Relative to a tensor's largest value. Of fp32 only gross faults are asked here: rounding, amplified by statistics of
#: few values, is the other tests' subject.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-2}


class Case(NamedTuple):
    library: str
    operations: tuple[tuple[str, int], ...]  # name, seed
    patch_before: int  # the operation before which the second model is patched
    mode: str
    fast: bool  # fp32 on the backend chosen automatically; else fp64 on the reference
    size: tuple[int, int]
    seed: int


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)

MODES = ("train", "eval", "no_grad", "inference")


def cases(names: tuple[str, ...]) -> st.SearchStrategy[Case]:
    one = st.tuples(st.sampled_from(names), st.integers(0, 10_000))
    return st.builds(
        Case,
        st.sampled_from(tuple(tiny_models.TINY)),
        st.lists(one, min_size=1, max_size=4).map(tuple),
        st.integers(0, 4),
        st.sampled_from(MODES),
        st.booleans() if native.available("_ops")[0] else st.just(False),
        st.tuples(st.integers(9, 24), st.integers(9, 24)),
        st.integers(0, 10_000),
    )


class Outcome(NamedTuple):
    """What a model did: tensors by name, or the kind of its refusal."""

    tensors: dict[str, Tensor]
    refusal: str


def operate(model: nn.Module, case: Case, patch: bool) -> nn.Module:
    for i, (name, seed) in enumerate(case.operations):
        if patch and i == case.patch_before:
            effnet_fast.patch(model)
        torch.manual_seed(seed)
        try:
            changed = OPERATIONS[name](model, random.Random(seed))
        except NothingToDo:
            continue
        model = changed
    if patch and case.patch_before >= len(case.operations):
        effnet_fast.patch(model)
    return model


def outcome(case: Case, dtype: torch.dtype, patch: bool) -> Outcome:
    """Two training steps or two inferences, the second on images of another size."""
    model = tiny_models.make(case.library).to(dtype).train(case.mode == "train")
    tensors: dict[str, Tensor] = {}
    try:
        model = operate(model, case, patch)
        torch.manual_seed(case.seed)
        model.to(dtype)
        height, width = case.size
        images = [
            torch.randn(3, 3, height, width, dtype=dtype),
            torch.randn(2, 3, width, height, dtype=dtype),
        ]
        with ExitStack() as stack:
            if case.mode in ("no_grad", "inference"):
                stack.enter_context(torch.no_grad() if case.mode == "no_grad" else torch.inference_mode())
            for i, x in enumerate(images):
                if not torch.is_grad_enabled():
                    tensors[f"output {i}"] = model(x).detach().clone()
                    continue
                x.requires_grad_(case.seed % 2 == 0)
                y = model(x)
                tensors[f"output {i}"] = y.detach().clone()
                if y.requires_grad:
                    y.square().mean().backward()
                if x.grad is not None:
                    tensors[f"input's gradient {i}"] = x.grad
    except Exception as error:
        return Outcome({}, f"{type(error).__name__}: {error}")
    for name, p in model.named_parameters():
        if p.grad is not None:
            tensors[f"gradient of {name}"] = p.grad
    tensors |= {f"state of {name}": t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    return Outcome(tensors, "")


def compare(case: Case) -> None:
    dtype = torch.float32 if case.fast else torch.float64
    with use_backend("auto" if case.fast else "reference"):
        stock, patched = outcome(case, dtype, False), outcome(case, dtype, True)
    kinds = patched.refusal.split(":")[0], stock.refusal.split(":")[0]
    # Our sentence where PyTorch's convolution would complain.
    assert kinds[0] == kinds[1] or kinds == ("EffnetFastError", "RuntimeError"), (
        f"patched: {patched.refusal or 'nothing raised'}; stock: {stock.refusal or 'nothing raised'}"
    )
    assert list(patched.tensors) == list(stock.tensors)
    for name, want in stock.tensors.items():
        got = patched.tensors[name]
        assert got.shape == want.shape and got.dtype == want.dtype, name
        if not want.is_floating_point():
            assert torch.equal(got, want), f"{name}: {got} where stock has {want}"
            continue
        if not want.numel():
            continue
        assert torch.equal(got.isfinite(), want.isfinite()), f"{name}: finite in other places"
        largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
        worst = (got - want)[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
        limit = TOLERANCE[dtype] * max(largest, 1e-3)
        assert worst <= limit, f"{name}: {worst:.3e} off where the largest value is {largest:.3e}"


def test_random_surgery(fuzz: Callable[..., None]) -> None:
    fuzz(compare, cases(tuple(OPERATIONS)), 100)


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_operation(fuzz: Callable[..., None], name: str) -> None:
    fuzz(compare, cases((name,)), 8)


def test_every_operation_finds_something_to_do() -> None:
    """On most seeds and libraries together; an operation that never applies tests nothing."""
    for name, function in OPERATIONS.items():
        done = 0
        for library in tiny_models.TINY:
            for seed in range(6):
                model = copy.deepcopy(tiny_models.make(library))
                try:
                    function(model, random.Random(seed))
                    done += 1
                except NothingToDo:
                    pass
        assert done >= 6, f"{name}: {done} of {6 * len(tiny_models.TINY)}"
