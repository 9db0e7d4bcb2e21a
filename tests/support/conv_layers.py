"""Layers outside the blocks (stem, head), in a network that is patched and in its stock twin."""

import copy
from collections.abc import Callable

import torch
from patched_blocks import shake_batch_norms
from torch import nn

import effnet_fast
from effnet_fast.nn.mbconv import ConvNormAct

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "stem": lambda: ConvNormAct(8, 16, 3, stride=2),
    "head": lambda: ConvNormAct(8, 24, 1),
    "narrowing": lambda: ConvNormAct(8, 5, 1, activation="none"),
    "relu6": lambda: ConvNormAct(8, 12, 5, activation="relu6"),
    "one-channel": lambda: ConvNormAct(8, 1, 3),
}


class Network(nn.Module):
    """A layer beside a block: alone it would not be patched."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.block = effnet_fast.nn.MBConv(
            8, 8, expand_ratio=2, kernel_size=3, stride=1, squeeze_channels=2, stochastic_depth_prob=0.3
        )
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.block(x))


def pair(
    name: str, dtype: torch.dtype = torch.float64, **options
) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    stock = shake_batch_norms(Network(LAYERS[name]())).to(dtype)
    return stock, effnet_fast.patch(copy.deepcopy(stock), **options), torch.randn(3, 8, 11, 10, dtype=dtype)
