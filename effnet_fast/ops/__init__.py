"""Autograd ops of the package: the building blocks and the whole MBConv block.

Each op is declared once (schema, fake kernel, autograd) and asks :mod:`effnet_fast.dispatch` which backend runs
it. All of them work under autograd, ``torch.compile(fullgraph=True)`` and ``torch.export``.
"""

from .batch_norm import batch_norm_finalize
from .depthwise import depthwise
from .pointwise import pointwise
from .squeeze_excite import squeeze_excite

__all__ = ["batch_norm_finalize", "depthwise", "pointwise", "squeeze_excite"]
