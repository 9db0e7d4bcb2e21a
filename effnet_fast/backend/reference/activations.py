"""Activations and gates with their derivatives, as functions of the pre-activation value."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: Order matters: native code receives the position in this tuple (csrc/common/activation.h).
ACTIVATIONS = ("none", "silu", "relu", "relu6", "hardswish", "sigmoid", "hardsigmoid")
NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}


def _silu_grad(n: Tensor) -> Tensor:
    s = torch.sigmoid(n)
    return s * (1 + n * (1 - s))


def _hardswish_grad(n: Tensor) -> Tensor:
    inner = (n + n + 3) / 6
    return torch.where(n <= -3, torch.zeros_like(n), torch.where(n < 3, inner, torch.ones_like(n)))


def _sigmoid_grad(n: Tensor) -> Tensor:
    s = torch.sigmoid(n)
    return s * (1 - s)


_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda n: n,
    # exp overflows to inf for n << 0 and n * 0 is -0: no NaN, unlike n / (1 + exp(-n)) at -inf.
    "silu": F.silu,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}

# At the kinks the one-sided derivative PyTorch's own backward uses; at NaN relu and relu6 let the gradient pass, as it
# does on CUDA and, but for some lanes of relu6, on the CPU.
_DERIVATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "silu": _silu_grad,
    "relu": lambda n: (~(n <= 0)).to(n.dtype),
    "relu6": lambda n: (~((n <= 0) | (n >= 6))).to(n.dtype),
    "hardswish": _hardswish_grad,
    "sigmoid": _sigmoid_grad,
    "hardsigmoid": lambda n: ((n > -3) & (n < 3)).to(n.dtype) / 6,
}


def activation(n: Tensor, name: str) -> Tensor:
    """``act(n)``; ``name`` is one of :data:`ACTIVATIONS`."""
    return _FORWARD[name](n)


def activation_grad(n: Tensor, name: str) -> Tensor:
    """``act'(n)`` at the pre-activation ``n``."""
    return _DERIVATIVE[name](n)
