"""Small networks of every library that ``effnet_fast.optimize`` knows, in evaluation mode."""

from collections.abc import Callable
from functools import partial

import pytest
from patched_blocks import shake_batch_norms
from torch import nn

import effnet_fast


def _torchvision(**options) -> nn.Module:
    return pytest.importorskip("torchvision.models").efficientnet_b0(**options)


def _timm(name: str, **options) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, **options)


def _same(package: str, name: str, **options) -> nn.Module:
    return pytest.importorskip(package).EfficientNet.from_name(name, **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "own": partial(effnet_fast.b0, num_classes=10),
    "torchvision": partial(_torchvision, num_classes=10),
    "timm": partial(_timm, "efficientnet_b0", num_classes=10),
    "timm-tf": partial(_timm, "tf_efficientnet_b0", num_classes=10),
    "timm-lite": partial(_timm, "efficientnet_lite0", num_classes=10),
    "timm-features": partial(_timm, "efficientnet_b0", num_classes=0, global_pool=""),
    "timm-pooled": partial(_timm, "efficientnet_b0", num_classes=0),
    "efficientnet_pytorch": partial(
        _same, "efficientnet_pytorch", "efficientnet-b0", num_classes=10, image_size=64
    ),
    "efficientnet_pytorch-dynamic": partial(
        _same, "efficientnet_pytorch", "efficientnet-b0", image_size=None, include_top=False
    ),
    "efficientnet_lite_pytorch": partial(
        _same, "efficientnet_lite_pytorch", "efficientnet-lite0", num_classes=10
    ),
}


def make_network(name: str) -> nn.Module:
    return shake_batch_norms(NETWORKS[name]()).eval()
