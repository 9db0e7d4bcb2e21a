"""Folded networks as ``optimize`` hands them to an engine, with random weights, and what they compute by definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast.backend.network import Block, Conv, Network, SqueezeExcite
from effnet_fast.backend.reference.activations import activation


def conv(o: int, i: int, k: int, groups: int = 1, act: str = "none", **facts) -> Conv:  # type: ignore[no-untyped-def]
    scale = 1.5 / (i // groups * k * k) ** 0.5
    return Conv(
        torch.randn(o, i // groups, k, k) * scale, torch.randn(o) / 4, groups=groups, act=act, **facts
    )


def squeeze_excite(c: int, r: int, act: str = "silu", gate: str = "sigmoid") -> SqueezeExcite:
    w1, w2 = torch.randn(r, c) / c**0.5, torch.randn(c, r) / r**0.5
    return SqueezeExcite(w1, torch.randn(r) / 4, w2, torch.randn(c) / 4, act, gate)


def block(
    cin: int,
    cout: int,
    *,
    ratio: int = 6,
    kernel: int = 3,
    stride: int = 1,
    act: str = "silu",
    se: bool = True,
    same: bool = False,
    gate: str = "sigmoid",
) -> Block:
    c = cin * ratio
    side = kernel // 2
    return Block(
        None if ratio == 1 else conv(c, cin, 1, act=act),
        conv(c, c, kernel, c, act, stride=stride, padding="same" if same else (side,) * 4),
        squeeze_excite(c, max(1, cin // 4), act if act != "none" else "relu", gate) if se else None,
        conv(cout, c, 1),
        stride == 1 and cin == cout,
    )


def network(
    blocks: list[Block], stem: Conv, head: int | None = 70, classes: int | None = 11, pool: bool = True
) -> Network:
    last = blocks[-1].project.weight.shape[0] if blocks else stem.weight.shape[0]
    classifier = None
    if head is not None and classes is not None and pool:
        classifier = (torch.randn(classes, head) / head**0.5, torch.randn(classes) / 4)
    return Network(
        stem, tuple(blocks), None if head is None else conv(head, last, 1, act="silu"), classifier, pool
    )


def padded(x: Tensor, layer: Conv) -> Tensor:
    if layer.padding != "same":
        return F.pad(x, layer.padding)
    k, s = layer.weight.shape[-1], layer.stride
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n in (x.shape[3], x.shape[2])]
    return F.pad(x, [side for t in totals for side in (t // 2, t - t // 2)])


def run_conv(x: Tensor, layer: Conv) -> Tensor:
    y = F.conv2d(
        padded(x, layer), layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.stride, 0, 1, layer.groups
    )
    return activation(y, layer.act)


def run_network(net: Network, x: Tensor) -> Tensor:
    """The definition, in the dtype of ``x``."""
    y = run_conv(x, net.stem)
    for b in net.blocks:
        d = run_conv(y if b.expand is None else run_conv(y, b.expand), b.depthwise)
        if b.squeeze_excite is not None:
            se = b.squeeze_excite
            w1, b1, w2, b2 = (t.to(x.dtype) for t in se[:4])
            hidden = activation(F.linear(d.mean((2, 3)), w1, b1), se.act)
            d = d * activation(F.linear(hidden, w2, b2), se.gate)[:, :, None, None]
        p = run_conv(d, b.project)
        y = p + y if b.residual else p
    if net.head is None:
        return y
    y = run_conv(y, net.head)
    if not net.pool:
        return y
    y = y.mean((2, 3))
    return y if net.classifier is None else F.linear(y, *(t.to(x.dtype) for t in net.classifier))
