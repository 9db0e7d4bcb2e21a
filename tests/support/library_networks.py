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


FAMILIES: dict[str, Family] = {
    "mobilenet_v2": Family(partial(_torchvision, "mobilenet_v2"), 19, 19),
    "mobilenet_v3_small": Family(partial(_torchvision, "mobilenet_v3_small"), 13, 13),
    "mobilenet_v3_large": Family(partial(_torchvision, "mobilenet_v3_large"), 17, 17),
    "mnasnet0_5": Family(partial(_torchvision, "mnasnet0_5"), 16, 16),
    "timm mobilenetv3": Family(partial(_timm, "mobilenetv3_small_075"), 12, 12),
    "timm hardcorenas": Family(partial(_timm, "hardcorenas_a"), 12, 12),
    "timm lcnet": Family(partial(_timm, "lcnet_050"), 0, 13),
    "timm mixnet": Family(partial(_timm, "mixnet_s"), 1, 16),
}


def make(name: str) -> nn.Module:
    """Statistics and weights as after some training."""
    torch.manual_seed(3)
    return shake_batch_norms(FAMILIES[name].make())
