"""What torch.compile records of a patched network: the fused ops. Values would not tell them from the modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import effnet_fast
from effnet_fast import use_backend
from effnet_fast.nn.mbconv import ConvNormAct


def recorded(model: nn.Module, x: torch.Tensor) -> list[str]:
    """The package's ops in the graph that dynamo makes of a call."""
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        found.extend(
            str(node.target).split(".")[1] for node in graph.graph.nodes if "effnet_fast" in str(node.target)
        )
        return graph.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True)(x)
    return found


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_compiled_blocks_and_layers_are_fused(mode: str, autocast: bool) -> None:
    block = effnet_fast.nn.MBConv(
        8, 8, expand_ratio=4, kernel_size=3, stride=1, squeeze_channels=2, stochastic_depth_prob=0.0
    )
    model = effnet_fast.patch(nn.Sequential(block, ConvNormAct(8, 24, 1))).train(mode == "training")
    x = torch.randn(2, 8, 6, 6)
    with (
        use_backend("reference"),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.set_grad_enabled(mode == "training"),
    ):
        assert recorded(model, x) == [f"mbconv_{mode}", f"conv_bn_act_{mode}"]
