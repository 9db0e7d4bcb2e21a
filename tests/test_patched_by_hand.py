"""Parts of patched blocks that users change themselves: pooling, activations, padding, weights, whole sequences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from changed_blocks import assert_step_is_stocks, pair, step
from networks import make_network
from patched_blocks import shake_batch_norms, timm_block
from torch import Tensor, nn

import effnet_fast
from effnet_fast import UnsupportedBlockError, tolerance, use_backend


class GeM(nn.Module):
    """Generalized mean pooling with a learnable exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min(1e-3).pow(self.p).mean((2, 3), keepdim=True).pow(1 / self.p)


POOLS: dict[str, Callable[[], nn.Module]] = {
    "maximum": lambda: nn.AdaptiveMaxPool2d(1),
    "window": lambda: nn.AvgPool2d(7),
    "learnable": GeM,
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["torchvision", "own"])
def test_pooling_of_squeeze_and_excite(name: str, pool: str) -> None:
    stock, patched, x = pair(name)
    for block in (stock, patched):
        block.block[2].avgpool = POOLS[pool]()
    assert_step_is_stocks(stock, patched, x)


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class Conv2d(nn.Conv2d):
    """Standardizes its weight (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return nn.functional.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardized(conv: nn.Conv2d) -> Conv2d:
    new = Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False, dtype=conv.weight.dtype)
    new.weight = conv.weight
    return new


def moved_padding(block: nn.Module) -> None:
    block.block[0][0].padding, block.block[1][0].padding = (2, 2), (0, 0)


CHANGES: dict[str, tuple[str, Callable[[nn.Module], Any]]] = {
    "trainable-swish": ("efficientnet_pytorch", lambda m: setattr(m, "_swish", Swish())),
    "weight-standardization": (
        "efficientnet_pytorch",
        lambda m: setattr(m, "_project_conv", standardized(m._project_conv)),
    ),
    "padding-moved": ("torchvision", moved_padding),
    "pruned-through-data": (
        "torchvision",
        lambda m: (
            [setattr(t, "data", t.data[:12]) for t in m.block[2].fc1.parameters()]
            and setattr(m.block[2].fc2.weight, "data", m.block[2].fc2.weight.data[:, :12])
        ),
    ),
    "half-a-batch-norm": (
        "torchvision",
        lambda m: setattr(m.block[1][1].bias, "data", m.block[1][1].bias.data[:5]),
    ),
    "weight-as-buffer": (
        "torchvision",
        lambda m: (
            w := m.block[3][0].weight.detach(),
            delattr(m.block[3][0], "weight"),
            m.block[3][0].register_buffer("weight", 2 * w),
        ),
    ),
    "bias-put-in": (
        "torchvision",
        lambda m: m.block[1][0]._parameters.update(bias=nn.Parameter(torch.ones(32, dtype=torch.float64))),
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_changes_of_value(how: str) -> None:
    name, change = CHANGES[how]
    stock, patched, x = pair(name)
    for block in (stock, patched):
        change(block)

    def outcome(block: nn.Module) -> list[Tensor] | str:
        try:
            return step(block, x)
        except RuntimeError:
            return "raised"

    for _ in range(2):
        with use_backend("reference"):
            expected, got = outcome(stock), outcome(patched)
        if isinstance(expected, str) or isinstance(got, str):
            assert isinstance(expected, str) and isinstance(got, str)
        else:
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_timms_own_swish_is_fused() -> None:
    activations = pytest.importorskip("timm.layers.activations")
    stock = timm_block("InvertedResidual", exp_ratio=4.0, act_layer=activations.Swish, drop_path_rate=0.0)
    stock = stock.double()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1, str(effnet_fast.report(patched))
    assert_step_is_stocks(stock, patched, torch.randn(2, 8, 7, 7, dtype=torch.float64))


@pytest.mark.parametrize("reentrant", [False, True])
def test_forwards_inside_a_backward(reentrant: bool) -> None:
    """Only gradient checkpointing runs a batch again; other forwards there are of batches that count."""
    stock, patched, x = pair("torchvision")
    other = torch.randn_like(x)
    for block in (stock, patched):
        block.train()
        leaf = x.clone().requires_grad_()

        def forward_once_more(grad: Tensor, block: nn.Module = block) -> None:
            block(other)

        leaf.register_hook(forward_once_more)
        torch.manual_seed(0)
        with use_backend("reference"):
            block(leaf).sum().backward()
    for a, b in zip(patched.buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert patched.block[0][1].num_batches_tracked == 2
    leaf = x.clone().requires_grad_()
    with use_backend("reference"):
        torch.utils.checkpoint.checkpoint(patched, leaf, use_reentrant=reentrant).sum().backward()
    assert patched.block[0][1].num_batches_tracked == 3


class Doubled(nn.Sequential):
    """A stage with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize("what", ["stage", "features", "block", "layer", "stem"])
def test_optimize_refuses_sequentials_with_a_forward_of_their_own(what: str) -> None:
    model = make_network("torchvision")
    if what == "stage":
        model.features[2] = Doubled(*model.features[2]).eval()
    elif what == "block":
        model.features[2][0].block = Doubled(*model.features[2][0].block).eval()
    elif what in ("layer", "stem"):
        layer = model.features[2][0].block[0] if what == "layer" else model.features[0]
        layer.__class__ = type("Conv2dNormActivation", (type(layer),), {"forward": Doubled.forward})
    else:
        setattr(model, what, Doubled(*getattr(model, what)).eval())
    with pytest.raises(UnsupportedBlockError):
        effnet_fast.optimize(model, (1, 3, 32, 32))


def test_optimize_runs_a_classifier_with_a_forward_of_its_own() -> None:
    model, x = make_network("torchvision"), torch.randn(16, 3, 32, 32)
    model.classifier = Doubled(*model.classifier).eval()
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        tolerance.assert_accurate("doubled", effnet_fast.optimize(model, x)(x), model(x), truth)


def test_a_block_used_twice() -> None:
    model = shake_batch_norms(make_network("torchvision"))
    # The last of a stage keeps its shape.
    model.features[2].append(model.features[2][-1])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        truth = copy.deepcopy(model).double()(x.double())
        tolerance.assert_accurate("optimized", effnet_fast.optimize(model, x)(x), expected, truth)
        tolerance.assert_accurate("patched", effnet_fast.patch(model)(x), expected, truth)
