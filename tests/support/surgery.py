"""What users do to models, as functions (model, rng) -> model that do the same to a stock model and to a patched one.

Every choice is made with ``rng`` among modules listed by name, so that twins with equal names are changed alike; new
parameters are drawn with torch's generator, which the caller seeds. The operations are in surgery_parts.py and
surgery_state.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from torch import nn

Operation = Callable[[nn.Module, random.Random], nn.Module]

OPERATIONS: dict[str, Operation] = {}


class NothingToDo(Exception):
    """The model has nothing of the kind an operation is about."""


def operation(function: Operation) -> Operation:
    OPERATIONS[function.__name__] = function
    return function


def pick(model: nn.Module, rng: random.Random, *kinds: type | str) -> tuple[nn.Module, str, nn.Module]:
    """(parent, attribute, module) of one module of these classes or class names; of any below the model if none given."""

    def fits(m: nn.Module) -> bool:
        names = {base.__name__ for base in type(m).__mro__}
        return not kinds or any(k in names if isinstance(k, str) else isinstance(m, k) for k in kinds)

    found = [name for name, m in model.named_modules() if name and fits(m)]
    if not found:
        raise NothingToDo
    parent, _, attribute = rng.choice(found).rpartition(".")
    holder = model.get_submodule(parent)
    return holder, attribute, getattr(holder, attribute)


ACTIVATIONS = (nn.SiLU, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Sigmoid, "Swish", "MemoryEfficientSwish")
EXCITES = ("SqueezeExcitation", "SqueezeExcite")
BLOCKS = ("MBConv", "MBConvBlock", "InvertedResidual", "DepthwiseSeparableConv")
DROPS = ("StochasticDepth", "DropPath")
