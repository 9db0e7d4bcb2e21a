"""SiLU in units: a block's weights such that its activations take fewer instructions (``csrc/cpu/engine/network.h``)."""

from __future__ import annotations

import math

from torch import Tensor

from ..inference.network import Block, Conv

__all__ = ["in_units"]

#: With ``t = u x``: ``u silu(x) = t / (1 + 2^t)``.
SILU_UNIT = -math.log2(math.e)


def in_units(block: Block) -> Block:
    """The block whose expansion and depthwise convolution give ``u`` times the result where they end with SiLU.

    With the kernels' activations, which expect that, it computes the same: what follows is divided by ``u``.
    """
    before = 1.0 if block.expand is None else _unit(block.expand.act)
    after = _unit(block.depthwise.act)
    se = block.squeeze_excite
    return block._replace(
        expand=None if block.expand is None else _scaled(block.expand, before, before),
        depthwise=_scaled(block.depthwise, after / before, after),
        squeeze_excite=None if se is None else se._replace(w1=_times(se.w1, 1.0 / after)),
        project=_scaled(block.project, 1.0 / after, 1.0),
    )


def _unit(act: str) -> float:
    return SILU_UNIT if act == "silu" else 1.0


def _scaled(conv: Conv, factor: float, bias_factor: float) -> Conv:
    return conv._replace(weight=_times(conv.weight, factor), bias=_times(conv.bias, bias_factor))


def _times(t: Tensor, factor: float) -> Tensor:
    return t if factor == 1.0 else (t.detach().double() * factor).to(t.dtype)
