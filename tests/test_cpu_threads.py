"""The same bits with any number of threads, in any batch: whole networks at their own size, optimized and patched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from networks import make_network
from patched_blocks import shake_batch_norms, torchvision_block
from torch import Tensor, nn

import effnet_fast
from effnet_fast.backend import native

FP32, BF16 = torch.float32, torch.bfloat16
THREADS = (2, 3, 5)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same_bits(run, x: Tensor) -> None:
    torch.set_num_threads(1)
    wanted = run(x)
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert torch.equal(run(x), wanted), f"{threads} threads"
        for i in (0, len(x) - 1):
            assert torch.equal(run(x[i : i + 1]), wanted[i : i + 1]), f"image {i} alone, {threads} threads"
    torch.set_num_threads(2)
    assert torch.equal(run(x.contiguous(memory_format=torch.channels_last)), wanted)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_optimized_networks(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    run = effnet_fast.optimize(make_network("own"), (1, 3, 64, 64), dtype=dtype)
    assert_same_bits(run, torch.randn(3, 3, 224, 224))


#: Pixels below, between and above the numbers at which the gate multiplies weights instead of pixels.
@pytest.mark.parametrize("size", [(7, 7), (9, 9), (13, 12), (17, 15), (40, 33)])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_patched_blocks(dtype: torch.dtype, size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    blocks = nn.Sequential(torchvision_block(), torchvision_block(kernel=3, cout=40))
    model = effnet_fast.patch(shake_batch_norms(blocks)).eval().to(dtype)
    with torch.no_grad():
        assert_same_bits(model, torch.randn(3, 8, *size).to(dtype))
