"""Operations are counted as PyTorch counts those of the same network."""

from __future__ import annotations

import copy

import pytest
import torch
from patched_blocks import BLOCKS, torchvision_block
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import effnet_fast
import effnet_fast.ops.flops  # registers the formulas
from effnet_fast import ops
from effnet_fast.backend import native
from effnet_fast.nn import fused


class Counter(TorchDispatchMode):
    """FlopCounterMode without its global hooks, before which a block runs its own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.ours = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
            self.ours += function.namespace == "effnet_fast"
        return out


def by_hand(block: nn.Module, x: torch.Tensor, gradients: bool) -> int:
    """From the shapes its convolutions see; with gradients, of inputs and weights."""
    total = 0

    def count(module: nn.Conv2d, inputs: tuple[torch.Tensor], y: torch.Tensor) -> None:
        nonlocal total
        times = 1 if not gradients else 3
        total += times * 2 * y.shape[0] * y.shape[2] * y.shape[3] * module.weight.numel()

    handles = [m.register_forward_hook(count) for m in block.modules() if isinstance(m, nn.Conv2d)]
    block(x)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "name", ["torchvision", "torchvision-no-expand", "torchvision-stride2", "lite-residual"]
)
def test_blocks(name: str, recompute: bool) -> None:
    block = BLOCKS[name]().eval()
    patched = effnet_fast.patch(copy.deepcopy(block), recompute_expand=recompute)
    x = torch.randn(2, 8, 11, 9)
    with torch.no_grad(), Counter() as counter:
        parts = effnet_fast.patching.registry.read_parts(patched)
        fused.run(parts, x)
    assert counter.flops == by_hand(block, x, False) and counter.ours == 1
    with Counter() as counter:
        y = fused.run(parts, x.clone().requires_grad_())
        y.sum().backward()
    again = 0
    if recompute and name != "torchvision-no-expand":
        expand = parts.expand.conv.weight
        again = 2 * x.shape[0] * x.shape[2] * x.shape[3] * expand.numel()
    assert counter.flops == by_hand(block, x, True) + again and counter.ours == 2


def test_layers_and_building_blocks() -> None:
    x, dense = torch.randn(2, 8, 11, 9, requires_grad=True), torch.randn(16, 8, 1, 1, requires_grad=True)
    stencil = torch.randn(8, 1, 3, 3, requires_grad=True)
    bn = ops.BatchNorm(*torch.rand(4, 16).add(0.5), 1e-3, True)
    pooled, w1, w2 = torch.randn(2, 8), torch.randn(3, 8), torch.randn(8, 3)
    pixels = 2 * 11 * 9
    for call, work in (
        (lambda: ops.conv_bn_act(x, dense, bn).y, pixels * 8 * 16),
        (lambda: ops.conv_bn_act(x, dense, bn, recompute=True).y, pixels * 8 * 16),
        (lambda: ops.pointwise(x, dense.flatten(1)).y, pixels * 8 * 16),
        (lambda: ops.depthwise(x, stencil, 1, 1).y, pixels * 8 * 9),
        (lambda: ops.squeeze_excite(pooled.requires_grad_(), w1, None, w2, None), 2 * 2 * 3 * 8),
    ):
        with Counter() as counter:
            y = call()
            assert counter.flops == 2 * work
            y.sum().backward()
        # One more where the forward's output was not kept.
        assert counter.flops in (6 * work, 8 * work) and counter.ours == 2


@pytest.mark.parametrize("train", [False, True])
def test_pytorchs_counter(train: bool) -> None:
    """It hooks every module, so that patched ones run their own code: the same numbers as stock."""
    model = nn.Sequential(torchvision_block(p=0.0), torchvision_block(p=0.0)).train(train)
    x, counts = torch.randn(2, 8, 11, 9), []
    for network in (copy.deepcopy(model), effnet_fast.patch(copy.deepcopy(model))):
        with FlopCounterMode(display=False) as counter:
            network(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_the_profiler_knows_pytorchs_own_operators_only() -> None:
    """Its numbers come from names and shapes in C++, where no formula can be added: docs/reliability.md says what can count."""
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)
    stock = torchvision_block(p=0.0).eval()
    x, counts = torch.randn(1, 8, 64, 64), []
    for network in (stock, effnet_fast.patch(copy.deepcopy(stock))):
        with torch.no_grad(), torch.profiler.profile(with_flops=True) as profile:
            network(x)
        counts.append(sum(event.flops for event in profile.key_averages()))
    assert 0 <= counts[1] < counts[0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        effnet_fast.patch(stock)(x)
    assert counter.get_total_flops() == by_hand(effnet_fast.unpatch(stock), x, False)
