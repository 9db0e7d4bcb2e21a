"""A batch that PyTorch refuses in training mode leaves what it leaves in a stock model: its error, its statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS
from patched_blocks import BLOCKS, shake_batch_norms
from torch import nn

import effnet_fast


def attempt(model: nn.Module, x: torch.Tensor) -> tuple[str, list[torch.Tensor]]:
    """The error and the buffers behind it."""
    torch.manual_seed(5)
    try:
        model(x)
        said = ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return said, list(model.buffers())


def assert_leaves_the_same(stock: nn.Module, x: torch.Tensor) -> str:
    # copy.deepcopy keeps the patch of models that are built with one.
    patched = effnet_fast.patch(copy.deepcopy(stock))
    stock = effnet_fast.unpatch(stock)
    (expected, wanted), (said, got) = attempt(stock, x), attempt(patched, x)
    assert said == expected
    for (name, _), a, b in zip(stock.named_buffers(), wanted, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    return said


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, frozen: int | None, momentum: float | None) -> None:
    torch.manual_seed(11)
    block = BLOCKS[name]().train()
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = momentum
    if frozen is not None and frozen < len(norms):
        norms[frozen].eval()
    refused = []
    for batch, height, width in [(1, 1, 1), (1, 2, 2), (1, 1, 2), (1, 2, 1), (1, 3, 3), (2, 1, 1), (0, 4, 4)]:
        x = torch.randn(batch, 8, height, width)
        refused.append(assert_leaves_the_same(copy.deepcopy(block), x))
    assert any("more than 1 value per channel" in said for said in refused)
    assert "" in refused


@pytest.mark.parametrize("size", [2, 31])
@pytest.mark.parametrize("name", ["own", "torchvision", "timm-tf", "efficientnet_pytorch-dynamic"])
def test_networks(name: str, size: int) -> None:
    torch.manual_seed(12)
    model = shake_batch_norms(NETWORKS[name]()).train()
    assert "more than 1 value per channel" in assert_leaves_the_same(model, torch.randn(1, 3, size, size))


@pytest.mark.parametrize("channels, dims", [(7, 4), (8, 3), (8, 5)])
def test_other_refusals_move_nothing(channels: int, dims: int) -> None:
    block = effnet_fast.patch(BLOCKS["torchvision"]()).train()
    before = [b.clone() for b in block.buffers()]
    with pytest.raises((RuntimeError, ValueError)):
        block(torch.randn(2, channels, *(6,) * (dims - 2)))
    assert all(torch.equal(a, b) for a, b in zip(before, block.buffers(), strict=True))
