"""A stock block and its patched twin that has run, and the comparison of a step after both were changed."""

from __future__ import annotations

import copy

import torch
from patched_blocks import BLOCKS
from torch import Tensor, nn

import effnet_fast
from effnet_fast import use_backend


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    stock = BLOCKS[name]().double().eval()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    with use_backend("reference"):
        patched(x)
    return stock, patched, x


def step(block: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    y = block(x)
    weights = [p for p in block.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), weights)]


def assert_step_is_stocks(stock: nn.Module, patched: nn.Module, x: Tensor) -> None:
    with use_backend("reference"):
        for a, b in zip(step(patched, x), step(stock, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
