"""Tools that change models in place, on patched blocks: LoRA, accelerate's hooks and offloading, functions wrapped globally."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from changed_blocks import assert_step_is_stocks, pair
from torch import Tensor, nn

import effnet_fast
from effnet_fast import use_backend


class Lora(nn.Module):
    """A low-rank side path around a 1x1 convolution, with what it wraps under ``base_layer``, as peft makes it."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False, dtype=base.weight.dtype)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False, dtype=base.weight.dtype)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


CONVS = {
    "torchvision": ("block.0.0", "block.2.fc2", "block.3.0"),
    "own": ("block.0.0", "block.2.fc1", "block.3.0"),
    "timm": ("conv_pw", "se.conv_expand", "conv_pwl"),
    "efficientnet_pytorch": ("_expand_conv", "_se_expand", "_project_conv"),
}


@pytest.mark.parametrize("name, path", [(name, path) for name, paths in CONVS.items() for path in paths])
def test_low_rank_side_paths(name: str, path: str) -> None:
    stock, patched, x = pair(name)
    for block in (stock, patched):
        block.requires_grad_(False)
        torch.manual_seed(1)
        block.set_submodule(path, Lora(block.get_submodule(path)))
    assert_step_is_stocks(stock, patched, x)
    assert "Lora" in effnet_fast.report(patched).rows[0].reason


def test_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    # It looks for a package named as this repository's folder of kernels.
    root = Path(__file__).resolve().parents[1]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p or ".").resolve() != root])
    peft = pytest.importorskip("peft", exc_type=ImportError)
    stock, patched, x = pair("timm")
    config = {"target_modules": ["conv_pw", "conv_pwl", "conv_expand"], "r": 2, "init_lora_weights": False}
    models = []
    for block in (stock, patched):
        torch.manual_seed(1)
        models.append(peft.inject_adapter_in_model(peft.LoraConfig(**config), block).double())
    assert_step_is_stocks(*models, x)


class Doubling:
    """accelerate's ``add_hook_to_module``, in short: the instance's forward replaced, the old one kept beside it."""

    def attach(self, module: nn.Module) -> None:
        module._hf_hook, module._old_forward = self, module.forward
        module.forward = lambda *args, **kwargs: 2 * module._old_forward(*args, **kwargs)


@pytest.mark.parametrize("path", ["", "block", "block.1", "block.1.0", "block.1.1", "block.2", "block.2.fc2"])
def test_forward_replaced_on_the_instance(path: str) -> None:
    stock, patched, x = pair("torchvision")
    for block in (stock, patched):
        Doubling().attach(block.get_submodule(path))
    assert_step_is_stocks(stock, patched, x)
    with use_backend("reference"):
        # What wraps the block itself calls its forward, which may be fused.
        assert effnet_fast.report(patched).fused == (path == "")


@pytest.mark.parametrize("path", ["block.1.0", "block.2.fc2", ""])
def test_accelerate_hooks(path: str) -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Scaling(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return output * 1.5

    stock, patched, x = pair("torchvision")
    for block in (stock, patched):
        hooks.add_hook_to_module(block.get_submodule(path), Scaling())
    assert_step_is_stocks(stock, patched, x)
    for block in (stock, patched):
        hooks.remove_hook_from_module(block.get_submodule(path))
    assert_step_is_stocks(stock, patched, x)
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1


def test_accelerate_offload() -> None:
    accelerate = pytest.importorskip("accelerate")
    stock, patched, x = pair("torchvision")
    accelerate.cpu_offload(patched, torch.device("cpu"))
    with use_backend("reference"), torch.no_grad():
        torch.testing.assert_close(patched(x), stock(x), rtol=1e-10, atol=1e-10)


def test_functions_put_aside_globally(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's profiler and quantization tools wrap ``torch.nn.functional``."""
    stock, patched, x = pair("torchvision")
    conv2d = nn.functional.conv2d
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "conv2d", lambda *args: 1.5 * conv2d(*args))
        assert_step_is_stocks(stock, patched, x)
        assert "torch.nn.functional.conv2d was replaced" in effnet_fast.report(patched).rows[0].reason
    assert_step_is_stocks(stock, patched, x)
