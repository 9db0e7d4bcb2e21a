"""Teaching the package a block of one's own: the examples of docs/patching.md."""

import copy
from collections.abc import Callable

import pytest
import torch
from patched_blocks import assert_same, shake_batch_norms
from plain_block import PlainBlock, plain_parts
from torch import nn

import effnet_fast
from effnet_fast import EffnetFastError, UnsupportedBlockError, use_backend
from effnet_fast.nn import MBConvParts, SqueezeExcite


class SENetBlock(PlainBlock):
    """The same with SENet's squeeze-and-excite: linear layers without bias, ReLU, reduction 16."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(16, 1, bias=False), nn.ReLU(), nn.Linear(1, 16, bias=False), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = nn.functional.relu6(self.bn1(self.expand(x)))
        a = nn.functional.relu6(self.bn2(self.depthwise(a)))
        gate = self.fc(a.mean(dim=(2, 3)))
        return x + self.bn3(self.project(a * gate[:, :, None, None]))


def senet_parts(block: SENetBlock) -> MBConvParts:
    return plain_parts(block)._replace(
        squeeze_excite=SqueezeExcite(block.fc[0], block.fc[2], "relu", "sigmoid")
    )


@pytest.mark.parametrize("kind, adapter", [(PlainBlock, plain_parts), (SENetBlock, senet_parts)])
def test_blocks_of_ones_own(kind: type[nn.Module], adapter: Callable[..., MBConvParts]) -> None:
    stock = shake_batch_norms(kind()).double()
    assert effnet_fast.report(stock).rows == []
    effnet_fast.register_block(kind, adapter)
    patched = effnet_fast.patch(copy.deepcopy(stock))
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1
        assert_same(stock, patched, torch.randn(2, 4, 6, 6, dtype=torch.float64))


def test_register_block_refuses_nonsense() -> None:
    with pytest.raises(EffnetFastError, match="block_class: expected a subclass of nn.Module"):
        effnet_fast.register_block("MBConv", plain_parts)
    with pytest.raises(EffnetFastError, match="adapter: expected a callable"):
        effnet_fast.register_block(PlainBlock, None)


def test_an_adapter_may_refuse() -> None:
    class Odd(PlainBlock):
        pass

    def refuse(block: nn.Module) -> MBConvParts:
        raise UnsupportedBlockError("odd on purpose")

    effnet_fast.register_block(Odd, refuse)
    patched = effnet_fast.patch(Odd())
    assert effnet_fast.report(patched).rows[0].reason == "odd on purpose"
    assert patched(torch.randn(2, 4, 5, 5)).shape == (2, 4, 5, 5)
    assert "odd on purpose" in str(effnet_fast.report(patched))
