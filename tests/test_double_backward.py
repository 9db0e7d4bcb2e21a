"""Gradients of gradients: products with the Hessian, gradient penalties, second-order MAML, through blocks and single ops."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from patched_blocks import BLOCKS, shake_batch_norms, torchvision_efficientnet
from torch import Tensor, nn

import effnet_fast
from effnet_fast import ops, tolerance, use_backend

BACKENDS = ("reference", "cpu")


def penalty(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The gradient of |dL/dx|^2 + |dL/dw|^2: every mixed second derivative takes part."""
    leaf = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = model(leaf)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    inputs = [leaf, *model.parameters()]
    first = torch.autograd.grad((y * weight).sin().sum(), inputs, create_graph=True, allow_unused=True)
    # Scaled, so that no part drowns in another's rounding.
    total = sum((g / g.detach().abs().max().clamp_min(1e-6)).square().sum() for g in first if g is not None)
    second = torch.autograd.grad(total, inputs, allow_unused=True)
    return [*(g.detach() for g in first), *(g for g in second if g is not None)]


#: PyTorch does not differentiate the derivative of its hard sigmoid, which is these blocks' gate.
ONCE = ("mobilenet_v3", "mobilenet_v3-stride2")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ONCE])
def test_blocks_in_fp64(name: str, mode: str) -> None:
    stock = BLOCKS[name]().double().train(mode == "train")
    patched = effnet_fast.patch(copy.deepcopy(stock))
    x = torch.randn(3, 8, 7, 6, dtype=torch.float64)
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1
        for a, b in zip(penalty(patched, x), penalty(stock, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("recompute", [False, True])
def test_block_in_fp32(recompute: bool) -> None:
    """Over all derivatives and some draws no less accurate than PyTorch: one alone is often a sum that cancels."""
    ours, pytorchs = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        stock = BLOCKS["torchvision"]()
        patched = effnet_fast.patch(copy.deepcopy(stock), recompute_expand=recompute)
        x = torch.randn(3, 8, 7, 6)
        truth = penalty(copy.deepcopy(stock).double(), x.double())
        with use_backend("cpu", "reference"):
            derivatives = penalty(patched, x), penalty(stock, x)
        for errors, found in zip((ours, pytorchs), derivatives, strict=True):
            errors += [
                tolerance.error(a, b) / b.abs().max().item() for a, b in zip(found, truth, strict=True)
            ]
    assert sum(ours) <= 1.5 * sum(pytorchs)
    assert max(ours) <= 2 * max(pytorchs)


def network() -> nn.Module:
    settings = [
        torchvision_efficientnet.MBConvConfig(1, 3, 1, 16, 8, 1),
        torchvision_efficientnet.MBConvConfig(4, 5, 2, 8, 12, 2),
    ]
    model = torchvision_efficientnet.EfficientNet(settings, 0.0, 0.2, num_classes=4, last_channel=24)
    return shake_batch_norms(model)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_network(mode: str) -> None:
    """Stem, blocks that share nothing, head: the graph of one layer's gradients runs through the next one's."""
    torch.manual_seed(0)
    stock = network().double().train(mode == "train")
    patched = effnet_fast.patch(copy.deepcopy(stock))
    x = torch.randn(4, 3, 17, 15, dtype=torch.float64)
    with use_backend("reference"):
        report = effnet_fast.report(patched)
        assert report.fused == len(report.rows) == 5
        for a, b in zip(penalty(patched, x), penalty(stock, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        for a, b in zip(patched.buffers(), stock.buffers(), strict=True):
            torch.testing.assert_close(a, b)


def test_a_block_applied_twice() -> None:
    """Its second input depends on its weights: they must not be counted twice."""

    class Twice(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    stock = Twice(BLOCKS["own"]()).double()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with use_backend("reference"):
        for a, b in zip(penalty(patched, x), penalty(stock, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_second_order_maml() -> None:
    """A step of the inner loop on a copy made of tensors, differentiated through."""

    def meta_gradient(model: nn.Module) -> list[Tensor]:
        names, weights = zip(*model.named_parameters(), strict=True)
        x = torch.linspace(-1, 1, 2 * 8 * 5 * 5, dtype=torch.float64).view(2, 8, 5, 5)
        loss = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), x).square().mean()
        steps = torch.autograd.grad(loss, weights, create_graph=True)
        fast = {name: w - 0.1 * g for name, w, g in zip(names, weights, steps, strict=True)}
        outer = torch.func.functional_call(model, fast, x.flip(0)).square().mean()
        return list(torch.autograd.grad(outer, weights))

    stock = BLOCKS["torchvision"]().double().eval()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    with use_backend("reference"):
        for a, b in zip(meta_gradient(patched), meta_gradient(stock), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


OPS: dict[str, tuple[Callable[..., object], Callable[[], tuple[Tensor, ...]]]] = {
    "pointwise": (
        lambda x, w, a, b, g, c, d, r, s: ops.pointwise(
            x, w, in_affine=(a, b), in_act="silu", gate=g, affine=(c, d), act="silu", row_scale=r, residual=s, pool=True
        ),
        lambda: (_randn(2, 3, 3, 2), _randn(4, 3), _randn(3), _randn(3), _randn(2, 3), _randn(4), _randn(4), _randn(2), _randn(2, 4, 3, 2)),
    ),
    "pointwise-stats": (lambda x, w: ops.pointwise(x, w, stats=True), lambda: (_randn(2, 3, 3, 2), _randn(4, 3))),
    "depthwise": (
        lambda x, w, a, b, c, d: ops.depthwise(
            x, w, stride=2, padding=1, in_affine=(a, b), in_act="silu", affine=(c, d), act="silu", pool=True
        ),
        lambda: (_randn(2, 3, 4, 5), _randn(3, 1, 3, 3), _randn(3), _randn(3), _randn(3), _randn(3)),
    ),
    "squeeze_excite": (
        ops.squeeze_excite,
        lambda: (_randn(2, 4), _randn(2, 4), _randn(2), _randn(4, 2), _randn(4)),
    ),
    "batch_norm_finalize": (
        lambda stats, w, b: ops.batch_norm_finalize(torch.cat([stats[:1], stats[1:].exp()]), w, b),
        lambda: (_randn(2, 4), _randn(4), _randn(4)),
    ),
    "conv_bn_act": (
        lambda x, w, a, b: ops.conv_bn_act(
            x, w, ops.BatchNorm(a, b, None, None, 1e-3, True), stride=2, padding=1, act="silu"
        ).y,
        lambda: (_randn(2, 2, 5, 4), _randn(3, 2, 3, 3), _randn(3), _randn(3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_single_ops(op: str) -> None:
    function, make = OPS[op]
    inputs = make()

    def outputs(*args: Tensor) -> tuple[Tensor, ...]:
        out = function(*args)
        found = out if isinstance(out, tuple) else (out,)
        return tuple(t for t in found if isinstance(t, Tensor) and t.requires_grad)

    with use_backend("reference"):
        assert torch.autograd.gradcheck(outputs, inputs)
        assert torch.autograd.gradgradcheck(outputs, inputs)


def test_statistics_changed_between_forward_and_backward_are_noticed() -> None:
    block = effnet_fast.patch(BLOCKS["torchvision"]().double().eval())
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    with use_backend("reference"):
        y = block(x)
        block.block[0][1].running_mean.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(y.sum(), x, create_graph=True)
