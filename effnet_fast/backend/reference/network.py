"""Running a :class:`Network` with PyTorch's own convolutions: the oracle, and what is left without native code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...types import same_padding
from ..network import Block, Conv, Network, mapped
from .activations import activation


def compile_network(network: Network, dtype: torch.dtype) -> ReferenceProgram:
    """The network prepared for one dtype."""
    return ReferenceProgram(network, dtype)


class ReferenceProgram:
    """A network prepared for one dtype; safe to be called from several threads at once.

    Args:
        network: as :mod:`effnet_fast.inference.extract` makes it; its tensors are copied only where ``dtype`` asks for it.
        dtype: of weights and activations: float32, bfloat16 or float64. Nothing else is rounded than what
            PyTorch's convolutions in this dtype round.
    """

    backend = "reference"

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._network: Network = mapped(network, lambda t: _cast(t, dtype))

    def run(self, x: Tensor) -> Tensor:
        """Logits, pooled features or features of images [N, Cin, H, W], in fp32; in bf16 if ``x`` is; else in fp64."""
        network = self._network
        out = torch.float64 if self.dtype == torch.float64 else torch.float32
        out = torch.bfloat16 if x.dtype == torch.bfloat16 else out
        # An enclosing autocast would choose another dtype than the one asked for.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            x = _conv(x.to(self.dtype, memory_format=torch.channels_last), network.stem)
            for block in network.blocks:
                x = _block(x, block)
            if network.head is not None:
                x = _conv(x, network.head)
                if network.pool:
                    x = x.mean((2, 3))
                    if network.classifier is not None:
                        x = functional.linear(x, *network.classifier)
            return x.to(out)


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``, images and filters channels_last."""
    return t.to(dtype, memory_format=torch.channels_last if t.dim() == 4 else torch.contiguous_format)


def _conv(x: Tensor, conv: Conv) -> Tensor:
    padding = conv.padding
    if padding == "same":
        padding = same_padding(x.shape[2], x.shape[3], conv.weight.shape[2], conv.stride)
    left, right, top, bottom = padding
    symmetric = left == right and top == bottom
    if not symmetric:
        x = functional.pad(x, padding)
    around = (top, left) if symmetric else (0, 0)
    x = functional.conv2d(x, conv.weight, conv.bias, conv.stride, around, 1, conv.groups)
    return activation(x, conv.act)


def _block(x: Tensor, block: Block) -> Tensor:
    y = x if block.expand is None else _conv(x, block.expand)
    y = _conv(y, block.depthwise)
    se = block.squeeze_excite
    if se is not None:
        gate = activation(functional.linear(y.mean((2, 3)), se.w1, se.b1), se.act)
        gate = activation(functional.linear(gate, se.w2, se.b2), se.gate)
        y = y * gate[:, :, None, None]
    y = _conv(y, block.project)
    return x + y if block.residual else y
