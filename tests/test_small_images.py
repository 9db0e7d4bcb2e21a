"""With gradients small images are left to PyTorch's modules, which are faster there; see docs/patching.md."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from patched_blocks import torchvision_block
from torch import nn
from torch.utils.checkpoint import checkpoint

import effnet_fast
from effnet_fast import use_backend
from effnet_fast.backend import native
from effnet_fast.errors import UnsupportedBlockError
from effnet_fast.nn import fingerprint, fused_layer, small_images
from effnet_fast.patching import registry


@pytest.fixture(autouse=True)
def no_image_is_small() -> None:
    """Here they may be."""


def runs_fused(block: nn.Module, x: torch.Tensor) -> bool:
    parts = registry.read_parts(block)
    said = ""
    try:
        registry.runner(parts).run(parts, x)
    except UnsupportedBlockError as error:
        said = str(error)
    assert said == "" or "its images are small" in said
    return not said


def needs_kernels() -> None:
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)


def test_where_the_line_is() -> None:
    needs_kernels()
    block = effnet_fast.patch(torchvision_block(p=0.0)).eval()  # 8 channels, expanded to 32
    side = int((small_images.SMALL_BLOCK / 32) ** 0.5)
    large, small = torch.randn(1, 8, side + 1, side + 1), torch.randn(1, 8, side - 1, side - 1)
    assert runs_fused(block, large) and not runs_fused(block, small)
    assert runs_fused(block, small.expand(2, -1, -1, -1))
    with torch.no_grad():
        assert runs_fused(block, small)
    assert not runs_fused(copy.deepcopy(block).requires_grad_(False), small.requires_grad_())
    with use_backend("cpu"):
        assert runs_fused(block, small)
    assert runs_fused(block.train(), large) and not runs_fused(block, small)
    layer = effnet_fast.patch(nn.Sequential(effnet_fast.nn.ConvNormAct(3, 8, 3), block))[0].eval()
    side = int((small_images.SMALL_LAYER / 8) ** 0.5)
    for mode in (True, False):
        assert not runs_fused(layer.train(mode), torch.randn(1, 3, side - 1, side - 1))
        assert runs_fused(layer, torch.randn(1, 3, side + 1, side + 1))
    assert fused_layer.needs_backward(registry.read_parts(layer), torch.randn(1, 3, 16, 16))


def test_of_many_images_fewer_values_are_small() -> None:
    needs_kernels()
    block = effnet_fast.patch(torchvision_block(p=0.0))
    side = int((small_images.SMALL_BLOCK / 32) ** 0.5) // 4
    assert not runs_fused(block, torch.randn(4, 8, side, side))
    assert runs_fused(block, torch.randn(16, 8, side, side))


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_gradient_checkpointing_small_images_are_counted_once(reentrant: bool) -> None:
    """PyTorch's own modules would count them again in the backward, in the first call and in those that are declined early."""
    needs_kernels()
    block = effnet_fast.patch(torchvision_block(p=0.0)).train()
    norm, x = block.block[0][1], torch.randn(2, 8, 6, 5, requires_grad=True)
    for count in (1, 2):
        checkpoint(block, x, use_reentrant=reentrant).sum().backward()
        assert norm.num_batches_tracked == count
    block(x).sum().backward()
    assert norm.num_batches_tracked == 3


def test_modules_get_the_memory_that_they_like() -> None:
    """Behind a fused block, whose images are channels_last; the first call and later ones compute the same bits."""
    needs_kernels()
    block = effnet_fast.patch(torchvision_block(p=0.0)).train()
    with use_backend("cpu"):
        x = block(torch.randn(2, 8, 6, 5, requires_grad=True))
    assert not x.is_contiguous() and block(x.detach()).is_contiguous(memory_format=torch.channels_last)
    other = effnet_fast.patch(copy.deepcopy(block))
    first, second = other(x), other(x)
    assert first.is_contiguous() and second.is_contiguous() and torch.equal(first, second)
    assert torch.equal(first, effnet_fast.unpatch(copy.deepcopy(block))(x.contiguous()))


def test_the_same_numbers() -> None:
    block = torchvision_block(p=0.0).eval()
    patched, x = effnet_fast.patch(copy.deepcopy(block)), torch.randn(2, 8, 9, 7)
    assert torch.equal(block(x), patched(x))


@pytest.mark.parametrize("training", [False, True])
def test_a_second_call_is_declined_before_anything_is_compared(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deciding has to cost less than noise; what changed since is right all the same, because its own modules run."""
    block = effnet_fast.patch(torchvision_block(p=0.0)).train(training)
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


@pytest.mark.parametrize("change", ["hooks", "no_grad", "frozen", "backend", "variable", "large"])
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
        if change == "hooks":
            block.train()
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t))
        elif change == "no_grad":
            stack.enter_context(torch.no_grad())
        elif change == "frozen":
            block.requires_grad_(False)
        elif change == "backend":
            stack.enter_context(use_backend("reference"))
        elif change == "variable":
            monkeypatch.setenv("EFFNET_FAST_BACKEND", "reference")
        else:
            x = torch.randn(2, 8, 96, 96)
        block(x)
    assert asked == [block]


def test_tracing_warns_of_no_decision() -> None:
    block = effnet_fast.patch(torchvision_block(p=0.0)).eval()
    x = torch.randn(1, 8, 6, 6)
    # Once, so that what is known of the block is there.
    block(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(block, x, check_trace=False)
