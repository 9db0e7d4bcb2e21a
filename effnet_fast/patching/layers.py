"""torchvision's ``Conv2dNormActivation`` outside the blocks (stem, head), and our ``ConvNormAct``."""

from __future__ import annotations

from torch import nn

from ..nn.parts import ConvLayerParts
from .torchvision import conv_bn


def parts(layer: nn.Module) -> ConvLayerParts:
    """Convolution, normalization and, perhaps, activation in a row."""
    return ConvLayerParts(conv_bn(layer))
