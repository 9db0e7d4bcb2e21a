"""One block on the fake device: what it launches, and where."""

from __future__ import annotations

import pytest

from . import budgets
from .log import Log
from .process import Device

MODES = ("inference", "training")
modes = pytest.mark.parametrize("mode", MODES)


def places(log: Log) -> set[tuple[int, int]]:
    """(device, stream) of every launch, copy and fill."""
    return {(launch.device, launch.stream) for launch in log.launches} | {
        (device, stream) for _, device, stream in log.operations
    }


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "autocast"])
@modes
def test_every_kernel_launches(device: Device, mode: str, dtype: str) -> None:
    run = device.run("blocks.steady", mode, dtype)
    assert not run.log.violations
    steady = run.parts["steady"]
    launched = {launch.name.split("<")[0].split("::")[-1]: launch.module for launch in steady.launches}
    # From the driver come Triton's kernels, from a library CUDA C++'s.
    assert launched["pointwise_fwd_kernel"] is True
    assert launched["depthwise_fwd_kernel"] is False
    assert launched["squeeze_excite_fwd_kernel"] is False
    if mode == "training":
        assert launched["depthwise_bwd_kernel"] is False
        assert launched["squeeze_excite_bwd_kernel"] is False
        assert launched["pointwise_dgrad_kernel"] is True
    assert not any(name.startswith(("convolution", "mm", "batch_norm_transform")) for name in launched)
    assert places(steady) == {(0, 0)}
    assert not steady.syncs and not steady.modules


@modes
def test_launches_by_name(device: Device, mode: str) -> None:
    names = device.run("blocks.steady", mode, "bf16").parts["steady"].names
    budget = budgets.BLOCK[mode]
    over = {
        name: (count, budget.get(name, 0)) for name, count in names.items() if count > budget.get(name, 0)
    }
    assert not over, f"launches beyond tests/fake_cuda/budgets.py, (launched, allowed): {over}"


@modes
def test_side_stream(device: Device, mode: str) -> None:
    run = device.run("blocks.on_side_stream", mode)
    assert not run.log.violations
    (place,) = places(run.parts["side"])
    assert place[0] == 0 and place[1] != 0
    assert not run.parts["side"].syncs


@modes
def test_other_gpu_than_the_current(device: Device, mode: str) -> None:
    run = device.run("blocks.on_other_gpu", mode)
    assert not run.log.violations
    assert places(run.parts["other"]) == {(1, 0)}
    assert set(run.parts["other"].modules) <= {1}
    assert run.value == 0


@modes
def test_thread_of_its_own(device: Device, mode: str) -> None:
    run = device.run("blocks.in_thread", mode)
    assert not run.log.violations
    (place,) = places(run.parts["thread"])
    assert place[0] == 0 and place[1] != 0
    assert 0 not in {launch.thread for launch in run.parts["thread"].launches}


@modes
def test_memory_is_given_back(device: Device, mode: str) -> None:
    held = device.run("blocks.memory", mode).value
    assert held["repeated"] == held["held"] > 0
    assert held["after"] == 0


def test_running_statistics_as_autograd_sees_them(device: Device) -> None:
    """Kernels write them unseen, from a recorded program too; another forward may have kept them."""
    seen = device.run("blocks.versions").value
    assert seen["block"] == seen["BatchNorm"] == {"num_batches_tracked"}
