"""The launch planner of the CUDA depthwise kernels: every candidate covers the work and fits the device."""

from __future__ import annotations

from typing import Any

import pytest

from effnet_fast.backend import native
from effnet_fast.bench.blocks import network
from effnet_fast.models import list_models

H200 = (132, 227 * 1024, 228 * 1024)
T4 = (40, 64 * 1024, 64 * 1024)


@pytest.fixture(scope="module")
def host() -> Any:
    loaded, reason = native.available("_C")
    if not loaded:
        pytest.skip(f"_C is not built: {reason}")
    return native.host()


SHAPES = sorted(
    {(b.channels, b.size, b.kernel_size, b.stride) for name in list_models() for b in network(name).blocks}
)


@pytest.mark.parametrize("device", [H200, T4], ids=["H200", "T4"])
@pytest.mark.parametrize("backward", [False, True])
def test_every_candidate_fits(host: Any, device: tuple[int, int, int], backward: bool) -> None:
    for channels, size, kernel, stride in SHAPES:
        facts = {"backward": backward, "has_z": backward, "element": 4, "device": device}
        padding = (kernel // 2,) * 4
        plans = host.depthwise_plans((32, channels, size, size), kernel, stride, padding, **facts)
        (best,) = host.depthwise_plans(
            (32, channels, size, size), kernel, stride, padding, best=True, **facts
        )
        assert best in plans
        assert best["predicted_us"] == min(plan["predicted_us"] for plan in plans)
        out = -(-size // stride)
        # The backward's steps are rows of dz; at a padding of half the kernel it needs one more at most.
        rows = out + 1 if backward else out
        for plan in plans:
            assert plan["threads"] <= (192 if backward else 128)
            assert plan["shared_bytes"] <= device[1]
            assert plan["channel_blocks"] * plan["groups"] * 32 >= channels
            assert plan["image_blocks"] * plan["images"] >= 32
            assert out <= plan["bands"] * plan["rows"] < rows + plan["bands"]
            assert plan["strips"] * plan["column_tiles"] * 4 // (stride if backward else 1) >= out


def test_odd_shapes_have_plans(host: Any) -> None:
    for shape in [(1, 1, 1, 1), (70000, 8, 1, 1), (1, 3, 2, 5000), (2, 5000, 3, 3)]:
        for kernel in (3, 5, 7):
            for stride in (1, 2):
                for backward in (False, True):
                    args = (shape, kernel, stride, (kernel,) * 4)
                    assert host.depthwise_plans(*args, backward=backward, element=4, device=T4)
