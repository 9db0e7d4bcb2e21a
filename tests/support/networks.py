"""Small networks of every library that ``effnet_fast.optimize`` knows, in evaluation mode."""

from collections.abc import Callable
from functools import partial

import pytest
from patched_blocks import shake_batch_norms
from torch import nn

import effnet_fast


def _torchvision(name: str, **options) -> nn.Module:
    return getattr(pytest.importorskip("torchvision.models"), name)(**options)


def _timm(name: str, **options) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, **options)


def _same(package: str, name: str, **options) -> nn.Module:
    return pytest.importorskip(package).EfficientNet.from_name(name, **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "own": partial(effnet_fast.b0, num_classes=10),
    "torchvision": partial(_torchvision, "efficientnet_b0", num_classes=10),
    "timm": partial(_timm, "efficientnet_b0", num_classes=10),
    "timm-tf": partial(_timm, "tf_efficientnet_b0", num_classes=10),
    "timm-lite": partial(_timm, "efficientnet_lite0", num_classes=10),
    "timm-features": partial(_timm, "efficientnet_b0", num_classes=0, global_pool=""),
    "timm-pooled": partial(_timm, "efficientnet_b0", num_classes=0),
    "torchvision-mobilenet_v2": partial(_torchvision, "mobilenet_v2", num_classes=10),
    "torchvision-mobilenet_v3": partial(_torchvision, "mobilenet_v3_small", num_classes=10),
    "torchvision-mnasnet": partial(_torchvision, "mnasnet0_5", num_classes=10),
    "timm-mobilenetv3": partial(_timm, "mobilenetv3_small_075", num_classes=10),
    "timm-mobilenetv3-features": partial(_timm, "tf_mobilenetv3_small_075", num_classes=0, global_pool=""),
    "timm-pruned": partial(_timm, "efficientnet_b1_pruned", num_classes=10),
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
