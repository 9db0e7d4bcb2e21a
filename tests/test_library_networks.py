"""Patched networks of other libraries compute what stock ones do, on the kernels of this machine: twice PyTorch's error.

Blocks by themselves are compared in fp64 (test_patching.py) and after every surgery (test_exact.py).
"""

from __future__ import annotations

import copy

import pytest
import torch
from library_networks import FAMILIES, make
from torch import Tensor, nn

import effnet_fast
from effnet_fast import tolerance

FP32, FP64 = torch.float32, torch.float64

families = pytest.mark.parametrize("name", FAMILIES)


def twins(name: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Patched, stock, and stock in fp64."""
    stock = make(name)
    return effnet_fast.patch(copy.deepcopy(stock)), stock, copy.deepcopy(stock).double()


def without_dropout(model: nn.Module) -> nn.Module:
    """Its noise would be drawn in each dtype's own way."""
    for module in model.modules():
        for rate in ("p", "drop_prob", "_drop_connect_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


@families
def test_what_runs_fused(name: str) -> None:
    patched = effnet_fast.patch(FAMILIES[name].make())
    for mode in (True, False):
        without_dropout(patched)
        report = effnet_fast.report(patched.train(mode))
        assert (report.fused, len(report.rows)) == FAMILIES[name][1:], str(report)
        assert all(row.reason for row in report.rows if row.state == "eager")


@families
def test_inference(name: str) -> None:
    """Over several images: in one, the largest error of a few numbers is a matter of luck."""
    patched, stock, exact = (model.eval() for model in twins(name))
    ours, pytorchs = 0.0, 0.0
    with torch.no_grad():
        for size in [(64, 32), (32, 96), (96, 64)] if "seg" in name else [(65, 47), (33, 70), (48, 91)]:
            x = torch.randn(2, 3, *size)
            truth = exact(x.double())
            scale = truth.abs().max().item()
            ours += tolerance.error(patched(x), truth) / scale
            pytorchs += tolerance.error(stock(x), truth) / scale
    assert ours <= 2 * pytorchs, f"{ours:.3e} exceeds twice {pytorchs:.3e}"


def step(model: nn.Module, x: Tensor, mode: bool) -> dict[str, Tensor]:
    """Output, every gradient and every buffer."""
    model.train(mode)
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    found = {"y": y, "x": leaf.grad}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | dict(model.named_buffers())  # type: ignore[return-value]


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@families
def test_a_step(name: str, mode: bool) -> None:
    """A fault shows with any images; a derivative that jumps (ReLU6) may make PyTorch's luck or ours with some."""
    wrong = []
    for _ in range(3):
        wrong = errors_of_a_step(name, mode)
        if not wrong:
            return
    pytest.fail("; ".join(wrong))


def errors_of_a_step(name: str, mode: bool) -> list[str]:
    """Over the output and all gradients, and over all statistics: one alone is often a sum that cancels."""
    state = torch.get_rng_state()
    patched, stock, exact = map(without_dropout, twins(name))
    torch.set_rng_state(state)
    x = torch.randn(3, 3, 64, 96) if "seg" in name else torch.randn(3, 3, 67, 78)
    got, baseline, truth = step(patched, x, mode), step(stock, x, mode), step(exact, x.double(), mode)
    assert got.keys() == baseline.keys() == truth.keys()
    buffers, sums = dict(stock.named_buffers()), {True: [0.0, 0.0], False: [0.0, 0.0]}
    for key, value in truth.items():
        scale = value.abs().max().item()
        if not value.is_floating_point():
            assert torch.equal(got[key], value), key
        elif scale:
            for i, found in enumerate((got, baseline)):
                sums[key in buffers][i] += tolerance.error(found[key], value) / scale
    return [
        f"{ours:.3e} exceeds twice {pytorchs:.3e}" for ours, pytorchs in sums.values() if ours > 2 * pytorchs
    ]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("timm lcnet", "an activation after the projection has no fused kernel"),
        ("timm mixnet", "MixedConv2d is not nn.Conv2d"),
    ],
)
def test_what_does_not_run_fused_says_why(name: str, reason: str) -> None:
    report = effnet_fast.report(effnet_fast.patch(FAMILIES[name].make()))
    assert {row.reason for row in report.rows if row.state == "eager"} == {reason}


@families
def test_unpatched_is_stock_again(name: str) -> None:
    patched, stock, _ = twins(name)
    effnet_fast.unpatch(patched)
    assert [type(m) for m in patched.modules()] == [type(m) for m in stock.modules()]
    assert list(patched.state_dict()) == list(stock.state_dict())
