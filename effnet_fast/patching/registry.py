"""Which adapter knows which kind of block, and the fused subclass made for it.

A block is patched by swapping its ``__class__`` for a subclass: parameters, buffers, state_dict keys and
``isinstance`` stay, and unlike a bound ``forward`` the change survives ``copy.deepcopy``, ``torch.save`` of the
module and ``DataParallel`` replicas.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EffnetFastError, UnsupportedBlockError
from ..nn import exact, fused, fused_layer, small_images, tensors
from ..nn.fingerprint import ATTRIBUTE, Fingerprint
from ..nn.observed import observed
from ..nn.parts import ConvLayerParts, MBConvParts, check_layer, check_parts
from . import libraries

#: block and what its forward received besides ``x`` -> its parts; raises UnsupportedBlockError.
Adapter = Callable[..., "MBConvParts | ConvLayerParts"]

#: Attribute of a patched block; in its ``__dict__``, so that copies and pickles keep it.
RECOMPUTES = "_effnet_fast_recompute_expand"

_adapters: dict[type[nn.Module], Adapter] = {}
_subclasses: dict[type[nn.Module], type[nn.Module]] = {}
#: Classes of the libraries above, of which every module inside is known; not those that a user registered.
_known: set[type] = set()

#: What an adapter may have read of a call's arguments and still read the same the next time.
_CONSTANTS = (type(None), bool, int, float, str)


class _UnknownPartsError(UnsupportedBlockError):
    """The block is made of what the kernels do not compute; it will hardly be made of something else soon."""


def register_block(block_class: type[nn.Module], adapter: Adapter) -> None:
    """Teach :func:`effnet_fast.patch` a block class of your own.

    Args:
        block_class: the module class, exactly (subclasses are not matched: they may compute something else).
        adapter: ``adapter(block, *args, **kwargs) -> MBConvParts``, given what the block's ``forward`` received
            after ``x``. It raises :class:`UnsupportedBlockError` with the reason where a block cannot run fused.
            It runs at every forward, so that replaced submodules are seen: keep it to attribute look-ups.
    """
    if not (isinstance(block_class, type) and issubclass(block_class, nn.Module)):
        raise EffnetFastError(
            f"register_block: block_class: expected a subclass of nn.Module, got {block_class!r}"
        )
    if not callable(adapter):
        raise EffnetFastError(f"register_block: adapter: expected a callable, got {type(adapter).__name__}")
    _adapters[block_class] = adapter
    _known.discard(block_class)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class a module had before it was patched."""
    return getattr(type(module), "_effnet_fast_original", type(module))


def is_derived(module: nn.Module) -> bool:
    """Whether a patched module was given a class that a user derived from the patched one."""
    return exact.library_class(type(module)) is not exact.library_class(original_class(module))


def unpatched_class(module: nn.Module) -> type[nn.Module]:
    """:func:`original_class`, sharded by FSDP if the module was sharded after it was patched.

    A class derived from a patched one stays: modules of it run their own code already.
    """
    current, original = type(module), original_class(module)
    if is_derived(module):
        return current
    if exact.shards(current):
        sharding = current.__bases__[0]
        methods = {"__deepcopy__": current.__deepcopy__}  # type: ignore[attr-defined]
        return type(f"FSDP{original.__name__}", (sharding, original), methods)
    return original


def is_patched(module: nn.Module) -> bool:
    return isinstance(module, FusedBlock)


def find_adapter(block_class: type[nn.Module]) -> Adapter | None:
    """The adapter for exactly this class, or ``None``."""
    adapter = _adapters.get(block_class)
    if adapter is None:
        if exact.shards(block_class):
            return find_adapter(block_class.__bases__[1])
        module = (libraries.BLOCKS | libraries.LAYERS).get((block_class.__module__, block_class.__qualname__))
        if module is not None and exact.is_where_it_says(block_class):
            adapter = _adapters[block_class] = importlib.import_module(module).parts
            _known.add(block_class)
    return adapter


def candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of the blocks of a model and, if it has any, of the convolution layers outside them."""
    found: list[tuple[str, nn.Module]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        block_class = original_class(module)
        if exact.shards(block_class):
            block_class = block_class.__bases__[1]
        layer = (block_class.__module__, block_class.__qualname__) in libraries.LAYERS
        if find_adapter(block_class) is None or (layer and module in inside):
            continue
        found.append((name, module))
        if not layer:
            inside.update(module.modules())
    return found if inside else []


def read_parts(block: nn.Module, *args: Any, **kwargs: Any) -> MBConvParts | ConvLayerParts:
    """The block's or layer's parts, if it may run fused now; read anew only where something inside changed.

    Raises:
        UnsupportedBlockError: the reason it may not.
    """
    arguments = (args, kwargs)
    if not _keeps_fingerprint(block, arguments):
        return _read(block, *args, **kwargs)
    known = block.__dict__.get(ATTRIBUTE)
    if known is None or not known.holds(block, arguments):
        known = Fingerprint(block, arguments)
        try:
            parts = _read(block, *args, **kwargs)
            known.parts = parts._replace(slots=tensors.slots_of(parts))
            known.smallness = small_images.Smallness.of(parts)
        except _UnknownPartsError as error:
            known.refusal = str(error)
            known.believe_refusal()
        except UnsupportedBlockError as error:
            known.refusal = str(error)
    elif known.waited:
        known.believe_refusal()
    return known.read()  # type: ignore[no-any-return]


def _keeps_fingerprint(block: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """An adapter that a user registered may read what no fingerprint covers; a compiler keeps guards of its own."""
    if torch.compiler.is_compiling() or not isinstance(block, FusedBlock):
        return False
    values = (*arguments[0], *arguments[1].values())
    return exact.library_class(type(block)) in _known and all(type(value) in _CONSTANTS for value in values)


def _read(block: nn.Module, *args: Any, **kwargs: Any) -> MBConvParts | ConvLayerParts:
    block_class = original_class(block)
    adapter = find_adapter(block_class)
    if adapter is None:
        raise UnsupportedBlockError(f"no adapter knows {type(block).__name__}")
    if is_derived(block):
        raise UnsupportedBlockError(
            f"its class {type(block).__qualname__} was derived from {block_class.__qualname__}"
        )
    known = exact.library_class(block_class) in _known
    try:
        parts = adapter(block, *args, **kwargs)
        if isinstance(parts, ConvLayerParts):
            check_layer(parts)
        else:
            check_parts(parts)
    except AttributeError as error:
        if not known:
            raise
        raise _UnknownPartsError(f"something in it is missing: {error}") from None
    except UnsupportedBlockError as error:
        raise _UnknownPartsError(str(error)) from None
    exact.check_inside(block, known)
    return parts._replace(recompute_expand=True) if recomputes(block) else parts


def recomputes(block: nn.Module) -> bool:
    """Whether :func:`effnet_fast.patch` was told to let this block recompute its expansion."""
    # Not getattr: an nn.Module takes microseconds to find out that it has no such attribute.
    return bool(block.__dict__.get(RECOMPUTES, False))


def runner(parts: MBConvParts | ConvLayerParts) -> Any:
    """The module whose ``run``, ``plan`` and ``needs_backward`` are for these parts."""
    return fused_layer if isinstance(parts, ConvLayerParts) else fused


def _run(parts: MBConvParts | ConvLayerParts, x: Tensor) -> Tensor:
    return runner(parts).run(parts, x)  # type: ignore[no-any-return]


def _surely_small(block: nn.Module, x: Tensor) -> bool:
    """Whether that much can be said without a look at the block."""
    # While a program is traced sizes are tensors, of which a decision would be written down.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    known = block.__dict__.get(ATTRIBUTE)
    return known is not None and known.smallness is not None and known.smallness.is_sure(x, block.training)


def _surely_refused(block: nn.Module) -> bool:
    """Whether a block that was refused for what it is made of is not looked at in this call; its own code is always right."""
    known = block.__dict__.get(ATTRIBUTE)
    if known is None or not known.waits or torch.compiler.is_compiling():
        return False
    known.waits -= 1
    return True


class _StockForward:
    """The original class's ``forward`` under a name of its own: TorchScript knows no ``super()``."""

    def __get__(self, block: nn.Module | None, kind: type[nn.Module]) -> Any:
        stock = kind._effnet_fast_original.forward  # type: ignore[attr-defined]
        code, space = stock.__code__, stock.__globals__
        renamed = FunctionType(code, space, "_stock_forward", stock.__defaults__, stock.__closure__)
        renamed.__annotations__, renamed.__module__ = stock.__annotations__, stock.__module__
        return renamed if block is None else MethodType(renamed, block)


class FusedBlock(nn.Module):
    """First base of every patched block: runs fused where possible, else the original class's forward."""

    _effnet_fast_original: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        # TorchScript compiles the first branch alone. (__prepare_scriptable__ would put what it returns into the
        # user's model.)
        if torch.jit.is_scripting():
            y = self._stock_forward(x)
        else:
            y = self._decide(x)
        return y

    def _decide(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if _surely_refused(self):
            pass
        elif _surely_small(self, x):
            x = small_images.as_modules_like_it(x)
        elif not observed(x):
            try:
                return _run(read_parts(self, *args, **kwargs), x)
            except small_images.SmallImagesError:
                x = small_images.as_modules_like_it(x)
            except UnsupportedBlockError:
                pass
        return super().forward(x, *args, **kwargs)

    _stock_forward = _StockForward()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds classes by name and this one is made at run time: name the original instead. What else its
        # pickle holds is the block's own affair (``__getstate__``, ``__reduce__``), and so is a class derived from this one.
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *rest = reduced

        def original(value: Any) -> Any:
            return self._effnet_fast_original if value is type(self) else value

        if rest and isinstance(rest[0], dict):
            rest[0] = {key: value for key, value in rest[0].items() if key != ATTRIBUTE}
        if is_derived(self):
            return make, arguments, *rest
        return _rebuild, (original(make), tuple(map(original, arguments))), *rest

    def _get_name(self) -> str:
        if is_derived(self):
            return type(self).__name__
        return f"{self._effnet_fast_original.__name__}[effnet_fast]"


class FusedBlockWithArguments(FusedBlock):
    """For blocks whose ``forward`` takes more than ``x``."""

    # A class of its own, because torch.fx cannot trace through *args of a root module.
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._decide(x, *args, **kwargs)


def fused_class(block_class: type[nn.Module]) -> type[nn.Module]:
    """The fused subclass of a block class, made once."""
    subclass = _subclasses.get(block_class)
    if subclass is None:
        namespace = {"_effnet_fast_original": block_class, "__doc__": block_class.__doc__}
        namespace |= {"__module__": __name__, "__qualname__": f"Fused{block_class.__name__}"}
        only_x = len(inspect.signature(block_class.forward).parameters) == 2
        base = FusedBlock if only_x else FusedBlockWithArguments
        subclass = _subclasses[block_class] = type(
            f"Fused{block_class.__name__}", (base, block_class), namespace
        )
    return subclass


def _rebuild(make: Any, arguments: tuple[Any, ...] | None = None) -> nn.Module:
    """A patched block without its state, from how the block would be made without the patch."""
    # Earlier versions' pickles give the class alone.
    block: nn.Module = make.__new__(make) if arguments is None else make(*arguments)
    if not is_patched(block):
        block.__class__ = fused_class(type(block))
    return block
