"""Whole networks in several Python threads at once: what every thread gets is what one alone gets, bit for bit.

An ordinary test, and the one that scripts/sanitize.py is most about: B0 optimized in fp32 and bf16, patched in inference,
and steps of training, on images of several sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import make_network
from torch import Tensor, nn

import effnet_fast
from effnet_fast.backend import native

SIZES = ((1, 33, 47), (2, 64, 40), (3, 32, 32), (1, 65, 64))


def images(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(n, 3, height, width).to(dtype) for n, height, width in SIZES]


def assert_threads_agree(run: Callable[[int], list[Tensor]]) -> None:
    alone = [run(i) for i in range(len(SIZES))]
    with ThreadPoolExecutor(len(SIZES)) as pool:
        together = list(pool.map(run, [*range(len(SIZES))] * 2))
    for got, want in zip(together, alone * 2, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert all(t.isfinite().all() for t in got)


@pytest.fixture(autouse=True)
def _native() -> None:
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["torchvision", "timm-tf", "efficientnet_lite_pytorch"])
def test_inference(name: str, dtype: torch.dtype) -> None:
    model, x = make_network(name), images(dtype)
    optimized = effnet_fast.optimize(model, (1, 3, 64, 64), dtype=dtype)
    patched = effnet_fast.patch(model).to(dtype)
    assert_threads_agree(lambda i: [optimized(x[i])])

    def patched_inference(i: int) -> list[Tensor]:
        with torch.inference_mode():
            return [patched(x[i]).clone()]

    assert_threads_agree(patched_inference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training(dtype: torch.dtype) -> None:
    model = effnet_fast.patch(make_network("torchvision")).to(dtype)
    for module in model.modules():
        # The random numbers are the process's own, not the thread's.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
    x = images(dtype)

    def step(i: int) -> list[Tensor]:
        own = copy.deepcopy(model).train()
        y = own(x[i].repeat(2, 1, 1, 1))
        y.float().square().mean().backward()
        return [y.detach(), *(p.grad for p in own.parameters() if p.grad is not None), *own.buffers()]

    assert_threads_agree(step)
