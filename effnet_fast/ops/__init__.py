"""Autograd ops of the package: the building blocks and the whole MBConv block.

Each op is declared once (schema, fake kernel, autograd) and asks :mod:`effnet_fast.dispatch` which backend runs
it. All of them work under autograd, ``torch.compile(fullgraph=True)`` and ``torch.export``.
"""

from .batch_norm import batch_norm_finalize
from .conv_bn_act import ConvBNActOut, conv_bn_act
from .depthwise import depthwise
from .mbconv import MBConvOut, mbconv
from .mbconv_types import BatchNorm, Settings, Weights
from .pointwise import pointwise
from .squeeze_excite import squeeze_excite

__all__ = [
    "BatchNorm",
    "ConvBNActOut",
    "MBConvOut",
    "Settings",
    "Weights",
    "batch_norm_finalize",
    "conv_bn_act",
    "depthwise",
    "mbconv",
    "pointwise",
    "squeeze_excite",
]
