"""CUDA graphs and torch.compile on the fake device, which forbids during a capture what a GPU's driver forbids."""

from __future__ import annotations

import pytest

from .log import short
from .process import Device, JobError

modes = pytest.mark.parametrize("mode", ["inference", "training"])


@pytest.mark.parametrize("warm", [True, False], ids=["after a warm-up", "at shapes nobody has run"])
@modes
def test_capture(device: Device, mode: str, warm: bool) -> None:
    run = device.run("blocks.captured", mode, warm)
    assert not run.log.violations
    capture, replay = run.parts["capture"], run.parts["replay"]
    # PyTorch fills its generator's state before the capture begins.
    outside = {short(launch.name) for launch in capture.launches if not launch.captured}
    assert outside <= {"vectorized_elementwise_kernel<FillFunctor>"} and len(capture.launches) > len(outside)
    assert capture.graphs == replay.replays and capture.graphs[0] >= len(capture.launches) - 2
    assert bool(capture.modules) != warm


def test_forbidden_calls_are_found(device: Device) -> None:
    with pytest.raises(JobError, match="cudaDeviceSynchronize while a graph is captured"):
        device.run("misuse.synchronize_in_capture")


@pytest.mark.parametrize("options", ["default", "reduce-overhead"])
@modes
def test_compile_fullgraph(device: Device, mode: str, options: str) -> None:
    run = device.run("blocks.compiled", mode, options)
    assert not run.log.violations
    assert run.value == "{}"
    steady = run.parts["steady"]
    assert not steady.modules and not steady.syncs
    if options == "reduce-overhead":
        # A graph each way; beside it only what feeds and clears.
        assert len(steady.replays) == (1 if mode == "inference" else 2)
        assert not any("pointwise" in name or "depthwise" in name for name in steady.names)
    else:
        assert steady.names["pointwise_fwd_kernel"] == 2
