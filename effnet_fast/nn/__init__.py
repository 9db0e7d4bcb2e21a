"""Modules: the MBConv block and its parts, and the description of a block that adapters return."""

from .mbconv import ConvNormAct, MBConv, SqueezeExcitation, StochasticDepth
from .parts import ConvBN, MBConvParts, SqueezeExcite

__all__ = [
    "ConvBN",
    "ConvNormAct",
    "MBConv",
    "MBConvParts",
    "SqueezeExcitation",
    "SqueezeExcite",
    "StochasticDepth",
]
