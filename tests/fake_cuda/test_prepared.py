"""What is prepared once stays right: nothing that a launch depends on is remembered past its change."""

from __future__ import annotations

import pytest

from .process import Device

FOUR = {"depthwise_fwd_kernel": 1, "pointwise_fwd_kernel": 2, "squeeze_excite_fwd_kernel": 1}

#: change -> whether the block is the native call after it, and how many preparations it took.
CHANGES = {
    "nothing": (True, 1),
    "weight replaced": (True, 0),
    "weight's data replaced": (True, 0),
    "weight written": (True, 0),
    "statistics replaced": (True, 0),
    "bias removed": (True, 1),
    "eps": (True, 1),
    "BatchNorms in fp32": (True, 1),
    "one vector in bf16": (True, 1),
    "all in bf16 again": (True, 0),
    "size": (True, 1),
    "layout": (True, 0),
    "misaligned": (False, 0),
    "aligned again": (True, 0),
    "strided": (False, 0),
    "dense again": (True, 0),
    "hook": (False, 0),
    "hook removed": (True, 0),
    "BatchNorm in training": (False, 0),
    "and out of it": (True, 0),
    "affine gone": (True, 1),
    "affine for statistics": (False, 0),
    "both again": (True, 0),
    "statistics gone": (False, 0),
}


def test_changes() -> None:
    with Device() as device:
        run = device.run("prepared.changes")
    assert not run.log.violations
    assert {name: (told["native"], told["prepared"]) for name, told in run.value.items()} == CHANGES
    assert all(told["current"] for told in run.value.values() if told["native"]), run.value
    for name in ("nothing", "misaligned", "strided"):
        own = {k: count for k, count in run.parts[name].names.items() if k.endswith("_fwd_kernel")}
        assert own == FOUR, (name, run.parts[name].names)
    assert not any(name.endswith("_fwd_kernel") for name in run.parts["hook"].names)


def test_listeners() -> None:
    with Device() as device:
        run = device.run("prepared.listeners")
    told = run.value
    assert told["native calls"] == 1
    assert told["counted"] == ["pointwise_fwd", "pointwise_fwd"]
    assert told["heard"] == ["pointwise_fwd_kernel"] * 2
    assert told["native calls before and after"] == 1 and told["native calls at the end"] == 2
    assert all(launch.module for launch in run.parts["triton"].launches if "_fwd_kernel" in launch.name)


@pytest.mark.parametrize("devices", [2])
def test_specializations_are_triton_s(devices: int) -> None:
    with Device(devices) as device:
        run = device.run("prepared.specializations")
    assert run.value == [] and not run.log.violations


def test_parameters_are_those_of_the_kernel() -> None:
    with Device() as device:
        found = device.run("prepared.parameters").value
    assert [name for name, _, _ in found] == ["pointwise_fwd_kernel"] * 4
    assert all(declared == passed for _, declared, passed in found), found
