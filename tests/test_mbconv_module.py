"""The MBConv module and its parts against formulas written with functions."""

import pytest
import torch
from torch import nn

from effnet_fast.errors import EffnetFastError
from effnet_fast.nn import ConvNormAct, MBConv, SqueezeExcitation, StochasticDepth


def test_stochastic_depth_matches_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    x = torch.randn(64, 2, 3, 3)
    for p in (0.0, 0.3, 1.0):
        ours, stock = StochasticDepth(p), ops.StochasticDepth(p, "row")
        torch.manual_seed(4)
        y = ours(x)
        torch.manual_seed(4)
        assert torch.equal(y, stock(x))
        assert torch.equal(ours.eval()(x), x)
    with pytest.raises(
        EffnetFastError, match=r"^StochasticDepth: p: expected a number from 0 to 1, got 1\.5$"
    ):
        StochasticDepth(1.5)


@pytest.mark.parametrize("activation", ["silu", "relu", "relu6", "hardswish"])
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_block_forms(activation, gate, stride, kernel_size):
    """Every form of the block against the formula, written with functions."""
    f = nn.functional
    torch.manual_seed(0)
    block = MBConv(
        5,
        5,
        expand_ratio=3,
        kernel_size=kernel_size,
        stride=stride,
        squeeze_channels=2,
        activation=activation,
        gate=gate,
    ).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    act, gate_act = getattr(f, activation), {"sigmoid": torch.sigmoid, "hardsigmoid": f.hardsigmoid}[gate]
    expand, depthwise, se, project = block.block

    def norm(z, bn):
        return f.batch_norm(z, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    x = torch.randn(2, 5, 9, 7)
    a = act(norm(f.conv2d(x, expand[0].weight), expand[1]))
    a = act(norm(f.conv2d(a, depthwise[0].weight, None, stride, kernel_size // 2, 1, 15), depthwise[1]))
    hidden = act(f.conv2d(a.mean((2, 3), keepdim=True), se.fc1.weight, se.fc1.bias))
    a = a * gate_act(f.conv2d(hidden, se.fc2.weight, se.fc2.bias))
    y = norm(f.conv2d(a, project[0].weight), project[1])
    if stride == 1:
        y = y + x
    torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)


def test_block_without_expansion_or_squeeze():
    plain = MBConv(6, 4, expand_ratio=1, kernel_size=3, stride=2, squeeze_channels=0)
    assert [type(m) for m in plain.block] == [ConvNormAct, ConvNormAct]
    assert plain(torch.randn(2, 6, 7, 7)).shape == (2, 4, 4, 4)
    full = MBConv(6, 6, expand_ratio=2, kernel_size=3, stride=1, squeeze_channels=3)
    assert [type(m) for m in full.block] == [ConvNormAct, ConvNormAct, SqueezeExcitation, ConvNormAct]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 3}, "MBConv: stride: expected 1 or 2, got 3"),
        ({"kernel_size": 4}, "MBConv: kernel_size: expected an odd positive number, got 4"),
        ({"squeeze_channels": -1}, "MBConv: squeeze_channels: expected a number >= 0, got -1"),
        ({"activation": "gelu"}, "activation: expected one of silu, relu, relu6, hardswish, got 'gelu'"),
        ({"gate": "tanh"}, "gate: expected one of sigmoid, hardsigmoid, got 'tanh'"),
        ({"stochastic_depth_prob": 2}, "p: expected a number from 0 to 1, got 2"),
    ],
)
def test_block_refuses(change, message):
    arguments = {"expand_ratio": 2, "kernel_size": 3, "stride": 1, "squeeze_channels": 1, **change}
    with pytest.raises(EffnetFastError, match=message):
        MBConv(4, 4, **arguments)
