"""Whether a module is exactly what the kernels compute: the library's own class, its own code, nothing in between.

Names prove nothing: a subclass or a look-alike may have the name of a known class, an instance may have a ``forward`` of
its own, a method may have been replaced for every instance. Everything is therefore checked by identity against where
the library keeps it. Attributes are not checked here but where they are read (:mod:`.parts`, the adapters).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedBlockError
from ..ops.declare import constant_result
from .known import KNOWN, Known

#: What ``module(x)`` runs before ``forward``.
_CALL = ("__call__", "_call_impl", "__getattr__")

#: The one name whose function is called otherwise.
_ALIASES = {"__call__": "_wrapped_call_impl"}


def shards(kind: type) -> bool:
    """Whether ``fully_shard`` made this class: ``FSDPModule`` before the class it was given, and nothing else."""
    return len(kind.__bases__) == 2 and kind.__bases__[0].__name__ == "FSDPModule"


def library_class(kind: type) -> type:
    """A module's class as its library made it: before it was patched, before it was sharded.

    A class that a user derived from a patched one is the user's own, as one derived from a library's is.
    """
    kind = vars(kind).get("_effnet_fast_original", kind)
    return library_class(kind.__bases__[1]) if shards(kind) else kind


def name_of(module: nn.Module) -> str:
    """Module and name of a module's class, the key of :data:`KNOWN`."""
    kind = library_class(type(module))
    return f"{kind.__module__}.{kind.__qualname__}"


def code_of(kind: type) -> list[tuple[Any, str]]:
    """Where the code lies that a call runs: (class or module, name), for ``getattr``."""
    known = KNOWN.get(f"{kind.__module__}.{kind.__qualname__}", Known())
    places: list[tuple[Any, str]] = [(kind, name) for name in ("forward", *known.methods)]
    places += [(nn.Module, name) for name in _CALL]
    places += [(sys.modules.get(module), name) for module, name in known.functions]
    return [(holder, name) for holder, name in places if hasattr(holder, name)]


@constant_result
def class_problem(kind: type) -> str:
    """Why the kernels cannot stand in for modules of this class; empty where they can."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in KNOWN or not is_where_it_says(kind):
        return f"{kind.__qualname__} of {kind.__module__} is no class that the kernels know"
    known = KNOWN[name]
    for method in ("forward", *_CALL, *known.methods):
        owner = next((base for base in kind.__mro__ if method in vars(base)), None)
        if owner is None or not _is_own(vars(owner)[method], owner.__module__, owner.__qualname__, method):
            return f"the class's own {method} was replaced ({kind.__qualname__})"
    if kind.__getattribute__ is not object.__getattribute__:
        return f"attributes of {kind.__qualname__} are looked up by code of its own"
    for module, function in known.functions:
        found = getattr(sys.modules.get(module), function, None)
        builtin = isinstance(found, BuiltinFunctionType) and found.__name__ == function
        if not builtin and not _is_own(found, getattr(found, "__module__", ""), "", function):
            return f"{module}.{function} was replaced"
    return ""


def is_where_it_says(kind: type) -> bool:
    """Whether its module holds this very class under its name."""
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def _is_own(function: object, module: str, owner: str, name: str) -> bool:
    """Whether a function was written where it is found: ``functools.wraps`` copies names, but not the globals."""
    home = sys.modules.get(module)
    return (
        isinstance(function, FunctionType)
        and home is not None
        and function.__globals__ is vars(home)
        and function.__qualname__ == f"{owner}.{_ALIASES.get(name, name)}".lstrip(".")
    )


def inside(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of everything below ``module``; one used twice comes twice."""
    for name, child in module._modules.items():
        if child is not None:
            path = f"{prefix}{name}"
            yield path, child
            yield from inside(child, f"{path}.")


def check_inside(block: nn.Module, known: bool) -> None:
    """Refuse a block in which anything is not what its adapter read.

    Args:
        block: its adapter has named its parts.
        known: the block is a library's, of which every module inside is known. In a class that a user registered,
            modules of other classes are the adapter's affair.

    Raises:
        UnsupportedBlockError: with the reason.
    """
    if nn.modules.module._has_any_global_hook():
        raise UnsupportedBlockError("a global module hook is registered")
    if known:
        problem = class_problem(library_class(type(block)))
        if problem:
            raise UnsupportedBlockError(problem)
    # What wraps the block's own forward calls it.
    check_instance("", block, allowed=("forward",))
    checked = set()
    for name, module in inside(block):
        check_instance(name, module)
        kind = library_class(type(module))
        if kind not in checked and (known or kind.__module__.startswith("torch.nn.")):
            problem = class_problem(kind)
            if problem:
                raise UnsupportedBlockError(f"{name}: {problem}")
            checked.add(kind)


def check_instance(name: str, module: nn.Module, allowed: tuple[str, ...] = ()) -> None:
    """Refuse hooks, parametrizations, and attributes of the instance that hide a method, a tensor or a child.

    Raises:
        UnsupportedBlockError: with the reason.
    """
    where = f"its {type(module).__name__} ({name})" if name else "it"
    forward = f"the forward of {where}" if name else "its forward"
    if name and has_hooks(module):
        raise UnsupportedBlockError(f"a hook is registered on {where}")
    children = module._modules
    if "parametrizations" in children:
        raise UnsupportedBlockError(f"{where} is parametrized")
    if torch.compiler.is_compiling():
        # What the compiler can guard. It guards the modules' attributes as the adapter read them.
        if "forward" not in allowed and "forward" in module.__dict__:
            raise UnsupportedBlockError(f"{forward} was replaced")
        return
    kind = type(module)
    for key, value in module.__dict__.items():
        if key in allowed:
            continue
        own = isinstance(value, MethodType) and value.__self__ is module
        if own and value.__func__ is getattr(kind, key, None):
            # Put back onto the instance by what had replaced it.
            continue
        if key == "forward":
            raise UnsupportedBlockError(f"{forward} was replaced")
        if key in module._parameters or key in module._buffers or key in children:
            raise UnsupportedBlockError(f"an attribute of {where} hides its {key}")
        if callable(getattr(kind, key, None)) or (key == "_compiled_call_impl" and value):
            raise UnsupportedBlockError(f"an attribute of {where} hides the class's {key}")


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` would run a hook, which a fused block would skip."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
