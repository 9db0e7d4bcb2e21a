"""One network of each family that other libraries build of MBConv blocks, and how much of it runs fused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from patched_blocks import shake_batch_norms
from torch import nn


class Family(NamedTuple):
    make: Callable[[], nn.Module]
    #: Blocks, and layers beside them, that run fused, and all that are found.
    fused: int
    found: int


def _torchvision(name: str) -> nn.Module:
    return getattr(pytest.importorskip("torchvision.models"), name)(num_classes=10)


def _timm(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=10)


def _geffnet(name: str) -> nn.Module:
    return pytest.importorskip("geffnet").create_model(name, num_classes=10)


def _segmentation(kind: str, encoder: str) -> nn.Module:
    library = pytest.importorskip("segmentation_models_pytorch")
    return getattr(library, kind)(encoder, encoder_weights=None)


def _transformers(name: str, **options: object) -> nn.Module:
    library = pytest.importorskip("transformers", exc_type=ImportError)
    model, settings = f"{name}ForImageClassification", f"{name}Config"
    return Logits(getattr(library, model)(getattr(library, settings)(num_labels=10, **options)))


class Logits(nn.Module):
    """A network of transformers that answers with a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=x).logits


FAMILIES: dict[str, Family] = {
    "mobilenet_v2": Family(partial(_torchvision, "mobilenet_v2"), 19, 19),
    "mobilenet_v3_small": Family(partial(_torchvision, "mobilenet_v3_small"), 13, 13),
    "mobilenet_v3_large": Family(partial(_torchvision, "mobilenet_v3_large"), 17, 17),
    "mnasnet0_5": Family(partial(_torchvision, "mnasnet0_5"), 16, 16),
    "timm mobilenetv3": Family(partial(_timm, "mobilenetv3_small_075"), 12, 12),
    "timm hardcorenas": Family(partial(_timm, "hardcorenas_a"), 12, 12),
    "timm lcnet": Family(partial(_timm, "lcnet_050"), 0, 13),
    "timm mixnet": Family(partial(_timm, "mixnet_s"), 1, 16),
    "geffnet efficientnet": Family(partial(_geffnet, "tf_efficientnet_lite0"), 16, 16),
    "geffnet mobilenetv3": Family(partial(_geffnet, "tf_mobilenetv3_small_075"), 12, 12),
    "segmentation_models_pytorch": Family(partial(_segmentation, "Unet", "efficientnet-b0"), 16, 16),
    "segmentation_models_pytorch on timm": Family(
        partial(_segmentation, "FPN", "timm-efficientnet-b0"), 16, 16
    ),
    "segmentation_models_pytorch on torchvision": Family(
        partial(_segmentation, "Unet", "mobilenet_v2"), 19, 19
    ),
    "transformers efficientnet": Family(
        partial(_transformers, "EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
        16,
        16,
    ),
    "transformers mobilenet_v2": Family(partial(_transformers, "MobileNetV2"), 18, 20),
}


def make(name: str) -> nn.Module:
    """Statistics and weights as after some training."""
    torch.manual_seed(3)
    return shake_batch_norms(FAMILIES[name].make())
