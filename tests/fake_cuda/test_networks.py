"""Whole networks on the fake device: everything fused, launches within budget, no waiting."""

from __future__ import annotations

import itertools

import pytest

from . import budgets
from .process import Device

KINDS = ("patched torchvision", "effnet_fast", "patched timm")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mode", "dtype"), budgets.NETWORK)
def test_b0(device: Device, mode: str, dtype: str, kind: str) -> None:
    pytest.importorskip(kind.removeprefix("patched "))
    run = device.run("networks.steady", mode, "b0", kind, dtype)
    assert not run.log.violations
    assert {state for _, state, _ in run.value} == {"fused"}, run.value
    steady = run.parts["steady"]
    # The report's word, and what was launched: torch's BatchNorm in timm's stem and head alone.
    eager = sum(count for name, count in steady.names.items() if name.startswith("batch_norm_transform"))
    assert eager == (2 if "timm" in kind else 0)
    assert {(launch.device, launch.stream) for launch in steady.launches} == {(0, 0)}
    assert not steady.syncs and not steady.modules
    allowed = budgets.NETWORK[mode, dtype] + ("timm" in kind) * budgets.TIMM
    assert steady.kernels <= allowed, (
        f"{steady.kernels} launches, {allowed} allowed (budgets.py): {steady.names}"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "dtype"), budgets.HOST)
def test_host_time_beside_eager(device: Device, mode: str, dtype: str) -> None:
    """CPU time of a call over stock torchvision's, in turns in one process; other work on the machine slows both."""
    cases = [(mode, "b0", kind, dtype, 1, 224) for kind in ("patched torchvision", "torchvision")]
    run = device.run("networks.measure", cases, rounds=41)
    assert not run.log.violations
    fused, eager = (result["median_ms"] for result in run.value)
    allowed = budgets.HOST[mode, dtype]
    assert fused <= allowed * eager, (
        f"{fused:.1f} ms, eager {eager:.1f} ms; at most {allowed} of it (budgets.py)"
    )


def test_budgets_name_every_case() -> None:
    assert set(budgets.NETWORK) == set(
        itertools.product(("inference", "training"), ("fp32", "fp16", "bf16", "autocast"))
    )
