"""A network with everything folded: what :func:`effnet_fast.optimize` hands to an engine.

Convolutions carry their BatchNorm (Jacob et al. 2018, section 3.2: ``w * gamma / sigma``, ``beta - mean * gamma /
sigma``), so that a layer is a convolution, a bias and an activation. All tensors are contiguous, in fp32, in
PyTorch's usual layout: packing them for a processor is the engine's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..types import Padding


class Conv(NamedTuple):
    """``act(conv2d(pad(x), weight) + bias)``."""

    weight: Tensor  # [O, I / groups, k, k]
    bias: Tensor  # [O]
    stride: int = 1
    #: "same" is TensorFlow's, which depends on the size of the input.
    padding: Padding | Literal["same"] = (0, 0, 0, 0)
    groups: int = 1
    act: str = "none"  # a name of effnet_fast.ops' activations


class SqueezeExcite(NamedTuple):
    """``gate = gate_act(w2 . act(w1 . mean(x) + b1) + b2)``, per image."""

    w1: Tensor  # [R, C]
    b1: Tensor  # [R], zeros where the layer has none
    w2: Tensor  # [C, R]
    b2: Tensor  # [C]
    act: str = "silu"
    gate: str = "sigmoid"


class Block(NamedTuple):
    """``y = project(gate * depthwise(expand(x))) (+ x)``; no expansion and no gate where they are ``None``."""

    expand: Conv | None  # 1x1
    depthwise: Conv  # groups == channels; k in 3, 5, 7; stride 1 or 2
    squeeze_excite: SqueezeExcite | None
    project: Conv  # 1x1, act "none"
    residual: bool


class Network(NamedTuple):
    """Stem, blocks, head and classifier of an EfficientNet-like network, or the first of these parts."""

    stem: Conv  # dense k x k, groups == 1
    blocks: tuple[Block, ...]
    head: Conv | None  # 1x1; None: the network ends with the blocks' features [N, C, H, W]
    #: After the mean over the image: [classes, C] and [classes]; None: ends with the pooled features [N, C].
    classifier: tuple[Tensor, Tensor] | None
    pool: bool = True  # False: ends with the head's features [N, C, H, W]


def mapped(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A network, or a part of one, with other tensors."""
    if isinstance(part, Tensor):
        return change(part)
    if not isinstance(part, tuple):
        return part
    parts = [mapped(item, change) for item in part]
    return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
