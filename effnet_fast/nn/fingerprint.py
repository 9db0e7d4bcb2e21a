"""What a block looked like when its parts were read, so that they need not be read at every call.

Everything that the reading depends on is compared at every call: no write goes unnoticed, whether it came through
``__setattr__``, through ``__dict__``, as a hook, as another class or as a method replaced for every instance.
Tensors are not part of it: they are fetched and checked anew at every call.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from ..errors import UnsupportedBlockError
from .exact import code_of, inside, library_class

#: Where a patched block keeps its fingerprint, in its ``__dict__``: copies begin without one.
ATTRIBUTE = "_effnet_fast_fingerprint"


def _is_settings(value: Any) -> bool:
    return type(value).__name__.endswith("Config") and hasattr(value, "__dict__")


#: Calls at most until a block that was refused for what it is made of is looked at again.
MOST_WAITS = 63


class Fingerprint:
    """The parts of a block, or the reason why it has none, and whether they are still what they were."""

    __slots__ = (
        "_code",
        "_hooked",
        "_hooks",
        "_live",
        "_modules",
        "_namespaces",
        "_places",
        "_saved",
        "_sizes",
        "_types",
        "arguments",
        "parts",
        "refusal",
        "smallness",
        "waited",
        "waits",
    )

    def __init__(self, block: nn.Module | None = None, arguments: object = ()) -> None:
        self.arguments = arguments
        self.parts: Any = None
        #: :class:`.small_images.Smallness`, which is asked before anything is compared.
        self.smallness: Any = None
        self.refusal = ""
        #: Calls for which a refusal that will hardly change is believed, and how many they were the last time.
        self.waits = self.waited = 0
        self._live: list[Any] = []
        if block is None:
            return
        block.__dict__[ATTRIBUTE] = self
        self._modules = [block, *(module for _, module in inside(block))]
        # Comparing dictionaries compares values by identity first, so this is one pass over pointers.
        self._live = [space for module in self._modules for space in (module.__dict__, module._modules)]
        # Lists change in place: strides may be some.
        self._live += [v for module in self._modules for v in module.__dict__.values() if type(v) is list]
        # So do settings that modules share (transformers' config), of which their forwards read.
        shared = {id(v): v for m in self._modules for v in m.__dict__.values() if _is_settings(v)}
        self._live += [vars(settings) for settings in shared.values()]
        self._saved = list(map(copy.copy, self._live))
        self._types = list(map(type, self._modules))
        self._hooks = [
            hooks
            for module in self._modules[1:]
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ]
        self._hooked = self._any_hook()
        kinds = dict.fromkeys(library_class(kind) for kind in self._types)
        places = dict.fromkeys(place for kind in kinds for place in code_of(kind))
        self._places = tuple(zip(*places, strict=True))
        self._code = list(map(getattr, *self._places))
        # A namespace that grows has got a method which hides one of a base class.
        bases = dict.fromkeys(base for kind in kinds for base in kind.__mro__[:-1])
        self._namespaces = list(map(vars, bases))
        self._sizes = list(map(len, self._namespaces))

    def _any_hook(self) -> bool:
        return any(self._hooks) or bool(_has_any_global_hook())

    def holds(self, block: nn.Module, arguments: object) -> bool:
        """Whether the block is what it was, called with the same arguments besides ``x``."""
        live = self._live
        try:
            return (
                bool(live)
                and live[0] is block.__dict__
                and live == self._saved
                and list(map(type, self._modules)) == self._types
                and self._any_hook() == self._hooked
                and list(map(getattr, *self._places)) == self._code
                and list(map(len, self._namespaces)) == self._sizes
                and self.arguments == arguments
            )
        except Exception:
            # Values that cannot be compared are others than they were: the same ones are not compared.
            return False

    def believe_refusal(self) -> None:
        """Comparing is lost time where nothing runs fused: it is done at every second call, then every fourth, ..."""
        self.waits = self.waited = min(2 * self.waited + 1, MOST_WAITS)

    def read(self) -> Any:
        """The parts.

        Raises:
            UnsupportedBlockError: the reason there are none.
        """
        if self.refusal:
            raise UnsupportedBlockError(self.refusal)
        return self.parts

    def __deepcopy__(self, memo: object) -> Fingerprint:
        return Fingerprint()

    def __reduce__(self) -> Any:
        return Fingerprint, ()
