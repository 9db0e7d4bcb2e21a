"""With gradients and frozen statistics small images are left to PyTorch's modules, which are faster there; see docs/patching.md."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from patched_blocks import torchvision_block
from torch import nn

import effnet_fast
from effnet_fast import native, use_backend
from effnet_fast.errors import UnsupportedBlockError
from effnet_fast.nn import fingerprint, fused_layer, small_images
from effnet_fast.patching import registry


def runs_fused(block: nn.Module, x: torch.Tensor) -> bool:
    parts = registry.read_parts(block)
    said = ""
    try:
        registry.runner(parts).run(parts, x)
    except UnsupportedBlockError as error:
        said = str(error)
    assert said == "" or "its images are small" in said
    return not said


def test_where_the_line_is() -> None:
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)
    block = effnet_fast.patch(torchvision_block(p=0.0)).eval()  # 8 channels, expanded to 32
    side = int((small_images.SMALL / 32) ** 0.5)
    large, small = torch.randn(1, 8, side + 1, side + 1), torch.randn(1, 8, side - 1, side - 1)
    assert runs_fused(block, large) and not runs_fused(block, small)
    assert runs_fused(block, small.expand(2, -1, -1, -1))
    with torch.no_grad():
        assert runs_fused(block, small)
    assert not runs_fused(copy.deepcopy(block).requires_grad_(False), small.requires_grad_())
    with use_backend("cpu"):
        assert runs_fused(block, small)
    assert runs_fused(block.train(), small)
    layer = effnet_fast.patch(nn.Sequential(effnet_fast.nn.ConvNormAct(3, 8, 3), block))[0].eval()
    assert not runs_fused(layer, torch.randn(1, 3, 16, 16)) and runs_fused(
        layer.train(), torch.randn(1, 3, 16, 16)
    )
    assert fused_layer.needs_backward(registry.read_parts(layer), torch.randn(1, 3, 16, 16))


def test_the_same_numbers() -> None:
    block = torchvision_block(p=0.0).eval()
    patched, x = effnet_fast.patch(copy.deepcopy(block)), torch.randn(2, 8, 9, 7)
    assert torch.equal(block(x), patched(x))


def test_a_second_call_is_declined_before_anything_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deciding has to cost less than noise; what changed since is right all the same, because its own modules run."""
    block = effnet_fast.patch(torchvision_block(p=0.0)).eval()
    x = torch.randn(1, 8, 6, 5)
    block(x)

    def compare(*_: object) -> bool:
        raise AssertionError("compared")

    with monkeypatch.context() as patching:
        patching.setattr(fingerprint.Fingerprint, "holds", compare)
        assert torch.equal(block(x), effnet_fast.unpatch(copy.deepcopy(block))(x))
        block.block[0][1].weight.data.mul_(3.0)
        block.block[0][2] = nn.Hardswish()
        block.block[2].avgpool = nn.AdaptiveMaxPool2d(1)
        assert torch.equal(block(x), effnet_fast.unpatch(copy.deepcopy(block))(x))


@pytest.mark.parametrize("change", ["mode", "no_grad", "frozen", "backend", "variable", "large"])
def test_what_makes_images_worth_it_again_is_seen(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = effnet_fast.patch(torchvision_block(p=0.0)).eval()
    x = torch.randn(2, 8, 6, 5)
    block(x)
    asked: list[nn.Module] = []
    read = registry.read_parts
    monkeypatch.setattr(registry, "read_parts", lambda block: asked.append(block) or read(block))
    block(x)
    assert not asked
    with contextlib.ExitStack() as stack:
        if change == "mode":
            block.train()
        elif change == "no_grad":
            stack.enter_context(torch.no_grad())
        elif change == "frozen":
            block.requires_grad_(False)
        elif change == "backend":
            stack.enter_context(use_backend("reference"))
        elif change == "variable":
            monkeypatch.setenv("EFFNET_FAST_BACKEND", "reference")
        else:
            x = torch.randn(2, 8, 64, 64)
        block(x)
    assert asked == [block]
