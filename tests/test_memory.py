"""What is kept for the backward: bytes for B0 to B7, and the option that keeps less."""

import copy

import pytest
import torch
from patched_blocks import BLOCKS, assert_same, pair, tolerance_of
from torch import nn

import effnet_fast
from effnet_fast import use_backend
from effnet_fast.bench.saved import saved_bytes
from effnet_fast.models import VARIANTS


@pytest.fixture(autouse=True)
def _reference():
    with use_backend("reference"):
        yield


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_kept_by_whole_networks(name: str) -> None:
    """At the resolution each is made for, on the meta device: at most 0.36 of eager's, 0.21 with recompute_expand.

    Vectors per channel do not grow with the batch; 32 images share them here, as in training.
    """
    with torch.device("meta"):
        fused = effnet_fast.create(name).train().bfloat16()
        size = VARIANTS[name].resolution
        x = torch.empty(32, 3, size, size, dtype=torch.bfloat16)
    stock = effnet_fast.unpatch(copy.deepcopy(fused))
    eager = saved_bytes(stock, x)
    assert 0.25 * eager < saved_bytes(fused, x) <= 0.36 * eager
    effnet_fast.patch(fused, recompute_expand=True)
    assert 0.1 * eager < saved_bytes(fused, x) <= 0.21 * eager


def test_the_count_is_what_eager_keeps() -> None:
    """A convolution keeps its input, BatchNorm its input and two vectors, SiLU its input; weights are not counted."""
    layer = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
    x = torch.randn(2, 3, 4, 4)
    assert saved_bytes(layer, x) == 4 * (2 * 3 * 16 + 2 * 8 * 16 + 2 * 8 + 2 * 8 * 16)


@pytest.mark.parametrize("name", BLOCKS)
def test_recomputing_blocks_are_the_stock_blocks(name: str) -> None:
    stock, patched, x = pair(name)
    effnet_fast.patch(patched, recompute_expand=True)
    assert effnet_fast.report(patched).fused == 1
    assert_same(stock, patched, x, tolerance=tolerance_of(name))


def test_recomputing_keeps_no_expansion() -> None:
    _, patched, x = pair("torchvision")
    leaf = x.requires_grad_()
    keeps = saved_bytes(patched, leaf)
    effnet_fast.patch(patched, recompute_expand=True)
    expanded = 8 * 32 * x.shape[0] * x.shape[2] * x.shape[3]
    assert keeps - saved_bytes(patched, leaf) == expanded


def test_constructors_take_the_option_and_copies_keep_it() -> None:
    with torch.device("meta"):
        x = torch.empty(2, 3, 64, 64)
        plain, saving = (effnet_fast.b0(recompute_expand=on).train() for on in (False, True))
    assert saved_bytes(copy.deepcopy(saving), x) == saved_bytes(saving, x) < 0.65 * saved_bytes(plain, x)


def test_whole_model_trains_alike() -> None:
    torch.manual_seed(0)
    fused = effnet_fast.b0(num_classes=5, recompute_expand=True).double()
    stock = effnet_fast.unpatch(copy.deepcopy(fused))
    assert_same(stock, fused, torch.randn(2, 3, 64, 64, dtype=torch.float64), tolerance=1e-8)
