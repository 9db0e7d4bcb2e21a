"""Blocks with a pickle of their own keep it when they are patched: state left out, made anew, arguments, slots."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from patched_blocks import BLOCKS as LIBRARIES
from plain_block import PlainBlock, plain_parts
from torch import Tensor, nn

import effnet_fast
from effnet_fast.patching import registry

#: Under these names pickle finds the classes again.
HERE = "pickled_blocks"


class Locked(PlainBlock):
    """A lock is no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = threading.Lock()


class Reduced(PlainBlock):
    """Made from its arguments."""

    def __init__(self, name: str = "none") -> None:
        super().__init__()
        self.name, self.lock = name, threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,), self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.load_state_dict(state)


class ReducedByName(Reduced):
    """The same, naming its class and for a protocol."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return ReducedByName, (self.name,), self.state_dict()


class NewArguments(PlainBlock):
    """``__new__`` takes arguments."""

    def __new__(cls, word: str = "none") -> NewArguments:
        block = super().__new__(cls)
        block.__dict__["word"] = word
        return block

    def __init__(self, word: str = "none") -> None:
        super().__init__()
        self.name = word

    def __getnewargs__(self) -> tuple[str]:
        return (self.name,)


class Copied(PlainBlock):
    """Deep copies are its own, pickles the usual ones."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        twin = type(self)()
        twin.load_state_dict(self.state_dict())
        return twin


BLOCKS: list[type[nn.Module]] = [Locked, Reduced, ReducedByName, NewArguments, Copied, PlainBlock]


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(HERE)
    monkeypatch.setitem(sys.modules, HERE, module)
    for block_class in BLOCKS[:-1]:
        setattr(module, block_class.__name__, block_class)
        monkeypatch.setattr(block_class, "__module__", HERE)
    monkeypatch.setattr(registry, "_adapters", dict(registry._adapters))
    for block_class in BLOCKS:
        effnet_fast.register_block(block_class, plain_parts)


def through_torch(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle-2": lambda m: pickle.loads(pickle.dumps(m, 2)),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": through_torch,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("block_class", BLOCKS)
def test_copies(block_class: type[nn.Module], how: str) -> None:
    block = block_class("given") if block_class in (Reduced, ReducedByName, NewArguments) else block_class()
    model = effnet_fast.patch(nn.Sequential(block)).eval()
    other = COPIES[how](model)
    assert type(other[0]) is type(model[0]) and isinstance(other[0], block_class)
    assert getattr(other[0], "name", None) == getattr(block, "name", None)
    assert hasattr(other[0], "lock") == hasattr(block, "lock")
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), model(x))
        next(other.parameters()).zero_()
        assert not torch.equal(other(x), model(x))
    # The copy is undone like its original.
    assert type(effnet_fast.unpatch(other)[0]) is block_class


def test_pickles_of_earlier_versions() -> None:
    block = effnet_fast.patch(PlainBlock())
    again = registry._rebuild(PlainBlock)
    again.__setstate__(block.__dict__)
    assert type(again) is type(block)


class Activates(PlainBlock):
    """Calls a method that subclasses may override."""

    def activated(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.activated(super().forward(x))


def derive(block: nn.Module, how: str) -> nn.Module:
    """The block with a class of the user's, derived from the one that it has, under a name that pickle finds."""
    base = type(block)
    space: dict[str, Any] = {"__module__": HERE}
    if how == "forward":
        space["forward"] = lambda self, x, *args: base.forward(self, x, *args) * 1.5
    elif how == "a method":
        space["activated"] = lambda self, x: x * 1.5
    block.__class__ = type("Derived", (base,), space)
    sys.modules[HERE].Derived = type(block)  # type: ignore[attr-defined]
    return block


ALL_COPIES = COPIES | {"copy": copy.copy, "replica": lambda m: m._replicate_for_data_parallel()}


@pytest.mark.parametrize("how", ALL_COPIES)
@pytest.mark.parametrize("name", [*LIBRARIES, "a method", "registered"])
def test_a_class_derived_from_the_patched_one_stays(name: str, how: str) -> None:
    if name in LIBRARIES:
        stock, x = LIBRARIES[name]().eval(), torch.randn(2, 8, 7, 6)
    else:
        effnet_fast.register_block(Activates, plain_parts)
        stock, x = Activates().eval(), torch.randn(2, 4, 9, 7)
    patched = effnet_fast.patch(copy.deepcopy(stock))
    method = "a method" if name == "a method" else "forward"
    with torch.no_grad():
        plain, want = stock(x), derive(stock, method)(x)
        assert (want - plain).abs().max() > 0.1
        derived = derive(patched, method)
        for block in (derived, ALL_COPIES[how](derived), effnet_fast.patch(derived)):
            assert type(block) is sys.modules[HERE].Derived  # type: ignore[attr-defined]
            torch.testing.assert_close(block(x), want)
            assert "was derived from" in effnet_fast.report(block).rows[0].reason
            assert "[effnet_fast]" not in repr(block)
        torch.testing.assert_close(effnet_fast.unpatch(derived)(x), want)
