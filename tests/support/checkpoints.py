"""A small network, its checkpoints as scripts write them, and whether they load."""

import pathlib
import warnings

import torch
from patched_blocks import shake_batch_norms
from torch import nn
from weight_states import CLASSES

from effnet_fast import models

SMALL = {"width_mult": 0.25, "depth_mult": 0.3, "num_classes": CLASSES}


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return shake_batch_norms(models.efficientnet(**SMALL))


def load(weights, **changes) -> nn.Module:
    return models.efficientnet(weights=weights, **(SMALL | changes))


def assert_loaded(model: nn.Module, source: nn.Module) -> None:
    for (key, value), (name, expected) in zip(
        model.state_dict().items(), source.state_dict().items(), strict=True
    ):
        assert key == name and torch.equal(value, expected), key


def silently(weights, source: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_loaded(load(weights), source)


def prefixed(prefix: str, state) -> dict:
    return {prefix + key: value for key, value in state.items()}


def saved(checkpoint, folder: pathlib.Path) -> pathlib.Path:
    torch.save(checkpoint, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"
