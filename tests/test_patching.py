"""Patched blocks compute what stock blocks compute: outputs, every gradient, running statistics."""

import copy
import inspect
import re
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from patched_blocks import (
    BLOCKS,
    assert_same,
    pair,
    tolerance_of,
    torchvision_efficientnet,
)
from torch import nn

import effnet_fast
from effnet_fast import use_backend


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_patched_block_is_the_stock_block(name: str, mode: str) -> None:
    stock, patched, x = pair(name)
    stock.train(mode == "train")
    patched.train(mode == "train")
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1, str(effnet_fast.report(patched))
        assert_same(stock, patched, x, tolerance=tolerance_of(name))
        with torch.no_grad():
            torch.manual_seed(3)
            expected = stock(x)
            torch.manual_seed(3)
            torch.testing.assert_close(patched(x), expected, rtol=1e-10, atol=1e-10)


def test_drop_connect_rate_reaches_the_block() -> None:
    stock, patched, x = pair("efficientnet_pytorch")
    with use_backend("reference"):
        assert_same(stock, patched, x, 0.5)


FROZEN: dict[str, Callable[[nn.Module], None]] = {
    "all-batch-norms": lambda m: [b.eval() for b in m.modules() if isinstance(b, nn.BatchNorm2d)],
    "one-batch-norm": lambda m: m.block[1][1].eval(),
    "cumulative-average": lambda m: [setattr(b, "momentum", None) for b in m.modules() if isinstance(b, nn.BatchNorm2d)],
    "without-affine": lambda m: m.block[0].__setitem__(1, nn.BatchNorm2d(32, affine=False, dtype=torch.float64)),
    "without-running-statistics": lambda m: m.block[0].__setitem__(
        1, nn.BatchNorm2d(32, track_running_stats=False, dtype=torch.float64)
    ),
    "frozen-weights": lambda m: [p.requires_grad_(False) for p in m.block[1].parameters()],
    "half-frozen-batch-norm": lambda m: m.block[1][1].bias.requires_grad_(False),
}  # fmt: skip


@pytest.mark.parametrize("how", FROZEN)
def test_partly_frozen(how: str) -> None:
    stock, patched, x = pair("torchvision")
    FROZEN[how](stock)
    FROZEN[how](patched)
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1, str(effnet_fast.report(patched))
        for _ in range(2):
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            torch.manual_seed(7)
            expected = stock(a)
            torch.manual_seed(7)
            got = patched(b)
            expected.square().sum().backward()
            got.square().sum().backward()
            torch.testing.assert_close(got, expected)
            torch.testing.assert_close(b.grad, a.grad)
            for p, q in zip(stock.parameters(), patched.parameters(), strict=True):
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)
            for p, q in zip(stock.buffers(), patched.buffers(), strict=True):
                torch.testing.assert_close(q, p)


def test_whole_torchvision_model_trains_alike() -> None:
    torch.manual_seed(0)
    stock = torchvision_efficientnet.efficientnet_b0(num_classes=5).double()
    patched = effnet_fast.patch(copy.deepcopy(stock), strict=False)
    with use_backend("reference"):
        report = effnet_fast.report(patched)
        assert report.fused == len(report.rows) == 18
        assert_same(stock, patched, torch.randn(2, 3, 64, 64, dtype=torch.float64), tolerance=1e-8)


@pytest.mark.parametrize("name", ["timm", "timm-separable"])
def test_older_timm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1.0.4 its blocks have no space-to-depth and no anti-aliasing, and their forward reads neither."""
    stock = BLOCKS[name]().eval()
    kind = type(stock)
    source = textwrap.dedent(inspect.getsource(kind.forward))
    source = re.sub(r"    if self.conv_s2d.*\n(        .*\n)+", "", source).replace(
        "    x = self.aa(x)\n", ""
    )
    assert not {"aa", "s2d"} & set(re.findall(r"aa|s2d", source))
    space: dict[str, object] = {}
    exec(compile(source, kind.__module__, "exec"), vars(sys.modules[kind.__module__]), space)
    forward = space["forward"]
    forward.__qualname__ = f"{kind.__qualname__}.forward"  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "forward", forward)
    del stock.aa, stock.conv_s2d
    patched = effnet_fast.patch(copy.deepcopy(stock))
    x = torch.randn(2, 8, 7, 6)
    with torch.no_grad():
        assert effnet_fast.report(patched).fused == 1
        torch.testing.assert_close(patched(x), stock(x))


def test_settings_that_modules_share_and_that_change_in_place() -> None:
    """transformers' layers read ``config.tf_padding`` at every call."""
    stock, patched, x = pair("transformers-mobilenet-stride2")
    for block in (stock, patched):
        block.eval()
    for padding in (False, True, False):
        for block in (stock, patched):
            # A copied block has a copied config.
            block.conv_3x3.config.tf_padding = padding
            block.conv_3x3.convolution.padding = (0, 0) if padding else (1, 1)
        with use_backend("reference"), torch.no_grad():
            assert effnet_fast.report(patched).fused == 1
            torch.testing.assert_close(patched(x), stock(x))
    with use_backend("reference"), torch.no_grad():
        for block in (stock, patched):
            block.conv_3x3.config.tf_padding = True
        (row,) = effnet_fast.report(patched).rows
        assert "pads by (1, 1) besides" in row.reason
        torch.testing.assert_close(patched(x), stock(x))


def test_a_library_that_pads_for_another_kernel_than_the_weights() -> None:
    stock, patched, x = pair("transformers-mobilenet")
    for block in (stock, patched):
        block.eval()
        block.conv_3x3.convolution.kernel_size = (5, 5)
    stock.use_residual = patched.use_residual = False
    with use_backend("reference"), torch.no_grad():
        (row,) = effnet_fast.report(patched).rows
        assert row.reason == "it pads for a kernel of 5, which is 3"
        assert patched(x).shape == stock(x).shape == (3, 8, 13, 13)
