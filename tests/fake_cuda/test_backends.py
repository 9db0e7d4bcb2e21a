"""Which backend runs on a GPU, and the backends' functions called directly."""

from __future__ import annotations

from .process import Device


def test_gpu_the_library_has_no_code_for(device: Device) -> None:
    run = device.run("backends.without_architecture")
    reason = "its library is built for sm_100 and cuda:0 is sm_90; to add it: effnet-fast build --archs 90"
    assert run.value == [("cuda", reason)]
    launched = {launch.name: launch.module for launch in run.parts["fallback"].launches}
    assert launched["depthwise_fwd_kernel"], "Triton's kernel runs instead"
    assert not run.log.violations


def test_cuda_functions_load_their_library(device: Device) -> None:
    with Device() as fresh:
        run = fresh.run("backends.call_directly")
    assert run.value == [2, 8, 9, 9]
    assert list(run.parts["direct"].names) == ["depthwise_fwd_kernel"]


def test_turing_has_no_bfloat16(device: Device) -> None:
    """The oldest GPU there is code for: fp16 runs fused, bf16 is left to PyTorch with a reason."""
    with Device(capability=75) as turing:
        fused = turing.run("networks.steady", "inference", "b0", "effnet_fast", "fp16")
        eager = turing.run("networks.steady", "inference", "b0", "effnet_fast", "bf16")
    assert {state for _, state, _ in fused.value} == {"fused"} and not fused.log.violations
    assert "depthwise_fwd_kernel" in fused.parts["steady"].names
    assert "depthwise_fwd_kernel" not in eager.parts["steady"].names
