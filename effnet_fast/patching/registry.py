"""Which adapter knows which kind of block, and the fused subclass made for it.

A block is patched by swapping its ``__class__`` for a subclass: parameters, buffers, state_dict keys and
``isinstance`` stay, and unlike a bound ``forward`` the change survives ``copy.deepcopy``, ``torch.save`` of the
module and ``DataParallel`` replicas.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import EffnetFastError, UnsupportedBlockError
from ..nn import fused, fused_layer
from ..nn.parts import ConvLayerParts, MBConvParts, check_inside, check_layer, check_parts

#: block and what its forward received besides ``x`` -> its parts; raises UnsupportedBlockError.
Adapter = Callable[..., "MBConvParts | ConvLayerParts"]

#: Blocks of other libraries, named so that nothing has to be imported: (module, class) -> our module with ``parts``.
_KNOWN = {
    ("effnet_fast.nn.mbconv", "MBConv"): "effnet_fast.patching.torchvision",
    ("torchvision.models.efficientnet", "MBConv"): "effnet_fast.patching.torchvision",
    ("efficientnet_pytorch.model", "MBConvBlock"): "effnet_fast.patching.efficientnet_pytorch",
    ("timm.models._efficientnet_blocks", "InvertedResidual"): "effnet_fast.patching.timm",
    ("timm.models._efficientnet_blocks", "DepthwiseSeparableConv"): "effnet_fast.patching.timm",
    ("efficientnet_lite_pytorch.model", "MBConvBlock"): "effnet_fast.patching.efficientnet_pytorch",
}

#: Convolution, normalization and activation in one module, patched where they stand outside the blocks.
_LAYERS = {
    ("effnet_fast.nn.mbconv", "ConvNormAct"): "effnet_fast.patching.layers",
    ("torchvision.ops.misc", "Conv2dNormActivation"): "effnet_fast.patching.layers",
}

#: Attribute of a patched block; in its ``__dict__``, so that copies and pickles keep it.
RECOMPUTES = "_effnet_fast_recompute_expand"

_adapters: dict[type[nn.Module], Adapter] = {}
_subclasses: dict[type[nn.Module], type[nn.Module]] = {}


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
            f"register_block: block_class must be a subclass of nn.Module, got {block_class!r}"
        )
    if not callable(adapter):
        raise EffnetFastError(f"register_block: adapter must be callable, got {type(adapter).__name__}")
    _adapters[block_class] = adapter


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class a module had before it was patched."""
    return getattr(type(module), "_effnet_fast_original", type(module))


def unpatched_class(module: nn.Module) -> type[nn.Module]:
    """:func:`original_class`, sharded by FSDP if the module was sharded after it was patched."""
    current, original = type(module), original_class(module)
    if _shards(current):
        sharding = current.__bases__[0]
        methods = {"__deepcopy__": current.__deepcopy__}  # type: ignore[attr-defined]
        return type(f"FSDP{original.__name__}", (sharding, original), methods)
    return original


def _shards(block_class: type[nn.Module]) -> bool:
    """Whether ``fully_shard`` made this class: ``FSDPModule`` before the class it was given, and nothing else."""
    return len(block_class.__bases__) == 2 and block_class.__bases__[0].__name__ == "FSDPModule"


def is_patched(module: nn.Module) -> bool:
    return isinstance(module, FusedBlock)


def find_adapter(block_class: type[nn.Module]) -> Adapter | None:
    """The adapter for exactly this class, or ``None``."""
    adapter = _adapters.get(block_class)
    if adapter is None:
        if _shards(block_class):
            return find_adapter(block_class.__bases__[1])
        module = (_KNOWN | _LAYERS).get((block_class.__module__, block_class.__qualname__))
        if module is not None:
            adapter = _adapters[block_class] = importlib.import_module(module).parts
    return adapter


def candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of the blocks of a model and, if it has any, of the convolution layers outside them."""
    found: list[tuple[str, nn.Module]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        block_class = original_class(module)
        if _shards(block_class):
            block_class = block_class.__bases__[1]
        layer = (block_class.__module__, block_class.__qualname__) in _LAYERS
        if find_adapter(block_class) is None or (layer and module in inside):
            continue
        found.append((name, module))
        if not layer:
            inside.update(module.modules())
    return found if inside else []


def read_parts(block: nn.Module, *args: Any, **kwargs: Any) -> MBConvParts | ConvLayerParts:
    """The block's or layer's parts, if it may run fused now.

    Raises:
        UnsupportedBlockError: the reason it may not.
    """
    adapter = find_adapter(original_class(block))
    if adapter is None:
        raise UnsupportedBlockError(f"no adapter knows {type(block).__name__}")
    parts = adapter(block, *args, **kwargs)
    if isinstance(parts, ConvLayerParts):
        check_layer(parts)
    else:
        check_parts(parts)
    check_inside(block)
    return parts._replace(recompute_expand=True) if recomputes(block) else parts


def recomputes(block: nn.Module) -> bool:
    """Whether :func:`effnet_fast.patch` was told to let this block recompute its expansion."""
    return getattr(block, RECOMPUTES, False)


def runner(parts: MBConvParts | ConvLayerParts) -> Any:
    """The module whose ``run``, ``plan`` and ``needs_backward`` are for these parts."""
    return fused_layer if isinstance(parts, ConvLayerParts) else fused


def _run(parts: MBConvParts | ConvLayerParts, x: Tensor) -> Tensor:
    return runner(parts).run(parts, x)  # type: ignore[no-any-return]


class FusedBlock(nn.Module):
    """First base of every patched block: runs fused where possible, else the original class's forward."""

    _effnet_fast_original: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        if not fused.tracing(x):
            try:
                return _run(read_parts(self), x)
            except UnsupportedBlockError:
                pass
        return super().forward(x)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds classes by name and this one is made at run time: name the original instead. What else its
        # pickle holds is the block's own affair (``__getstate__``, ``__reduce__``).
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *rest = reduced

        def original(value: Any) -> Any:
            return self._effnet_fast_original if value is type(self) else value

        return _rebuild, (original(make), tuple(map(original, arguments))), *rest

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles: the original block, on the same parameters."""
        original = self._effnet_fast_original.__new__(self._effnet_fast_original)
        original.__dict__ = self.__dict__
        return original

    def _get_name(self) -> str:
        return f"{self._effnet_fast_original.__name__}[effnet_fast]"


class FusedBlockWithArguments(FusedBlock):
    """For blocks whose ``forward`` takes more than ``x``."""

    # A class of its own, because torch.fx cannot trace through *args of a root module.
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not fused.tracing(x):
            try:
                return _run(read_parts(self, *args, **kwargs), x)
            except UnsupportedBlockError:
                pass
        return super(FusedBlock, self).forward(x, *args, **kwargs)


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
