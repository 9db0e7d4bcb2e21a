"""Operations of tests/support/surgery.py that replace parts of a model."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import torch
from surgery import ACTIVATIONS, BLOCKS, DROPS, EXCITES, NothingToDo, operation, pick
from torch import Tensor, nn
from wrappers import Wrapped

# --- modules of the user's own ---


class LearnableSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class GeM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-2).pow(self.p).mean((2, 3), keepdim=True).pow(1 / self.p)


def scaled(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return function(*args, **kwargs) * 0.8


def _other_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    return super(type(self), self).forward(*args, **kwargs) * 1.1


# --- parts replaced ---


@operation
def replace_activation(model: nn.Module, rng: random.Random) -> nn.Module:
    holder, name, _ = pick(model, rng, *ACTIVATIONS)
    made = rng.choice(
        (nn.GELU, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Tanh, nn.Identity, LearnableSwish, nn.SiLU)
    )
    setattr(holder, name, made())
    return model


@operation
def replace_norm(model: nn.Module, rng: random.Random) -> nn.Module:
    holder, name, bn = pick(model, rng, nn.BatchNorm2d)
    c, kind = bn.num_features, rng.randrange(6)
    made = (
        lambda: nn.GroupNorm(1, c),
        lambda: nn.BatchNorm2d(c, eps=0.1, momentum=None),
        lambda: nn.BatchNorm2d(c, affine=False),
        lambda: nn.BatchNorm2d(c, track_running_stats=False),
        lambda: nn.InstanceNorm2d(c, affine=True),
        lambda: nn.Identity(),
    )[kind]()
    # What reads the activation of a normalization (timm) must still find one.
    made = nn.Sequential(made, bn.act) if hasattr(bn, "act") else made
    setattr(holder, name, made)
    return model


@operation
def replace_convolution(model: nn.Module, rng: random.Random) -> nn.Module:
    holder, name, conv = pick(model, rng, nn.Conv2d)
    kind = rng.randrange(3)
    if kind == 0:
        made: nn.Module = copy.deepcopy(conv)
        nn.init.normal_(made.weight, 0, 0.3)
    elif kind == 1:
        made = Wrapped(conv)
    else:
        made = nn.Conv2d(
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding),
            groups=conv.groups,
            bias=True,
            padding_mode=rng.choice(("zeros", "reflect")),
        )
    setattr(holder, name, made)
    return model


@operation
def replace_pooling(model: nn.Module, rng: random.Random) -> nn.Module:
    holder, name, _ = pick(model, rng, nn.AdaptiveAvgPool2d)
    setattr(holder, name, rng.choice((lambda: nn.AdaptiveMaxPool2d(1), GeM))())
    return model


@operation
def wrap(model: nn.Module, rng: random.Random) -> nn.Module:
    holder, name, inner = pick(model, rng, nn.Conv2d, nn.BatchNorm2d, *ACTIVATIONS, *EXCITES, *BLOCKS, *DROPS)
    setattr(holder, name, Wrapped(inner))
    return model


@operation
def subclass(model: nn.Module, rng: random.Random) -> nn.Module:
    """A subclass of the same name, module and attributes whose forward does something else."""
    _, _, module = pick(model, rng, nn.Conv2d, nn.BatchNorm2d, *ACTIVATIONS, *EXCITES, *BLOCKS, *DROPS)
    base = type(module)
    module.__class__ = type(
        base.__name__, (base,), {"forward": _other_forward, "__module__": base.__module__}
    )
    return model


@operation
def replace_forward(model: nn.Module, rng: random.Random) -> nn.Module:
    """What accelerate, LoRA and activation capture do."""
    _, _, module = pick(model, rng)
    if isinstance(module, (nn.ModuleList, nn.Identity)):
        raise NothingToDo
    module.forward = functools.partial(scaled, module.forward)
    return model


@operation
def remove_a_layer(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, layers = pick(model, rng, nn.Sequential)
    if len(layers) < 2:
        raise NothingToDo
    del layers[rng.randrange(len(layers))]
    return model


@operation
def insert_a_layer(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, layers = pick(model, rng, nn.Sequential)
    layers.insert(rng.randrange(len(layers) + 1), rng.choice((nn.Identity, nn.Tanh, nn.ELU))())
    return model


@operation
def use_twice(model: nn.Module, rng: random.Random) -> nn.Module:
    """One module in two places: weights are shared."""
    found = [(m, name) for _, m in model.named_modules() for name, _ in m.named_children()]
    pairs = [(a, b) for a in found for b in found if a is not b and _alike(getattr(*a), getattr(*b))]
    if not pairs:
        raise NothingToDo
    (holder, name), source = rng.choice(pairs)
    setattr(holder, name, getattr(*source))
    return model


def _alike(a: nn.Module, b: nn.Module) -> bool:
    shapes = [[p.shape for p in m.parameters()] for m in (a, b)]
    return type(a) is type(b) and a is not b and shapes[0] == shapes[1] and bool(shapes[0])
