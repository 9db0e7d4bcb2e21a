"""The tensors of a block or layer, fetched and checked at every call.

They change behind their modules' backs: through ``.data``, ``torch.func.functional_call``, sharding, quantization. So
nothing of them is kept, and what the kernels rely on (plain tensors, shapes that fit, one device) is looked at each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShardedWeightError, UnsupportedBlockError
from ..ops.mbconv_types import DEPTHWISE as DEPTHWISE
from ..ops.mbconv_types import EXPAND as EXPAND
from ..ops.mbconv_types import PROJECT as PROJECT
from ..ops.mbconv_types import SE as SE
from .parts import ConvBN, ConvLayerParts, MBConvParts


class Slots:
    """Where tensors lie, the shapes and the device that were found to fit, and what is prepared for such."""

    __slots__ = ("_prepared", "device", "places", "shapes")

    def __init__(self, places: tuple[tuple[dict[str, Any], str], ...]) -> None:
        self.places = places
        self.shapes: list[Any] | None = None
        self.device: torch.device | None = None
        #: question -> kinds of the tensors, what is prepared
        self._prepared: dict[Any, tuple[list[type], Any]] = {}

    def prepare(self, asked: Any, prepared: Any) -> None:
        """Keep what runs the block for a question, for as long as its tensors are plain and the same ones are there."""
        if len(self._prepared) >= _PREPARED:
            self._prepared.clear()
        self._prepared[asked] = list(map(type, self.fetch())), prepared

    def prepared(self, asked: Any) -> tuple[Any, list[Tensor]] | None:
        """What was kept, and the block's tensors that are there; their shapes and their memory are not looked at."""
        found = self._prepared.get(asked)
        if found is None:
            return None
        tensors = self.fetch()
        if list(map(type, tensors)) != found[0]:
            return None
        return found[1], [t for t in tensors if t is not None]

    def fetch(self) -> list[Tensor | None]:
        """The tensors, in the order of :func:`of_block` or :func:`of_layer`, then the convolutions' biases."""
        try:
            return [space[key] for space, key in self.places]
        except KeyError as error:
            raise UnsupportedBlockError(f"it has no {error}") from None


#: Sizes of images for which a block keeps what runs it.
_PREPARED = 64

_NOWHERE: dict[str, Any] = {"": None}
_PLAIN = {nn.Parameter, Tensor, type(None)}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def of(parts: MBConvParts | ConvLayerParts) -> list[Tensor | None]:
    """:func:`of_block` or :func:`of_layer`."""
    return of_layer(parts) if isinstance(parts, ConvLayerParts) else of_block(parts)


def of_block(parts: MBConvParts) -> list[Tensor | None]:
    """Every tensor of a block, checked.

    Returns:
        [weight, bn.weight, bn.bias, bn.running_mean, bn.running_var] of expand, depthwise and project, then
        [fc1.weight, fc1.bias, fc2.weight, fc2.bias], as the modules hold them; ``None`` for what is not there.

    Raises:
        UnsupportedBlockError: a tensor is not what the kernels take; the message is the reason.
    """
    tensors = _fetch(parts)
    shapes = [None if t is None else t.shape for t in tensors]
    if not _as_before(parts, tensors, shapes):
        _check_block(parts, tensors, shapes)
    return tensors[:19]


def _check_block(parts: MBConvParts, tensors: list[Tensor | None], shapes: list[Any]) -> None:
    _check_plain(parts, tensors)
    if any(bias is not None for bias in tensors[19:]):
        raise UnsupportedBlockError("a convolution has a bias")
    first, stencil, project = shapes[EXPAND], shapes[DEPTHWISE], shapes[PROJECT]
    if parts.depthwise.conv.groups != stencil[0] or stencil[1] != 1:
        raise UnsupportedBlockError("the depthwise convolution has a channel multiplier or wider groups")
    if len(stencil) != 4 or stencil[2] != stencil[3]:
        raise UnsupportedBlockError(f"depthwise kernel {tuple(stencil[2:])} is not square")
    if parts.padded_kernel not in (0, stencil[2]):
        raise UnsupportedBlockError(f"it pads for a kernel of {parts.padded_kernel}, which is {stencil[2]}")
    channels, inputs = stencil[0], stencil[0]
    if first is not None:
        inputs = first[1]
        if first[2:] != (1, 1):
            raise UnsupportedBlockError("the expand convolution is not a plain 1x1")
        _expect(shapes, EXPAND, (channels, inputs, 1, 1), channels)
    if project[2:] != (1, 1):
        raise UnsupportedBlockError("the project convolution is not a plain 1x1")
    _expect(shapes, DEPTHWISE, stencil, channels)
    _expect(shapes, PROJECT, (project[0], channels, 1, 1), project[0])
    if parts.residual and project[0] != inputs:
        raise UnsupportedBlockError("the residual connection joins different numbers of channels")
    if parts.squeeze_excite is not None:
        _check_squeeze_excite(shapes, channels)
    _remember(parts, shapes)


def of_layer(parts: ConvLayerParts) -> list[Tensor | None]:
    """[weight, bn.weight, bn.bias, bn.running_mean, bn.running_var], checked as :func:`of_block` does."""
    tensors = _fetch(parts)
    shapes: list[Any] = [None if t is None else t.shape for t in tensors]
    if not _as_before(parts, tensors, shapes):
        _check_plain(parts, tensors)
        if tensors[5] is not None:
            raise UnsupportedBlockError("a convolution has a bias")
        if len(shapes[0]) != 4:
            raise UnsupportedBlockError(f"the layer's weight has {len(shapes[0])} dimensions")
        _expect(shapes, 0, shapes[0], shapes[0][0])
        _remember(parts, shapes)
    return tensors[:5]


def _as_before(parts: MBConvParts | ConvLayerParts, tensors: list[Tensor | None], shapes: list[Any]) -> bool:
    """Whether all this has been checked: plain tensors of the same shapes, on the same device."""
    slots = parts.slots
    if slots is None or shapes != slots.shapes or not _PLAIN.issuperset(map(type, tensors)):
        return False
    devices = [t.device for t in tensors if t is not None]
    return devices.count(slots.device) == len(devices)  # type: ignore[arg-type]


def _remember(parts: MBConvParts | ConvLayerParts, shapes: list[Any]) -> None:
    if parts.slots is not None:
        parts.slots.shapes, parts.slots.device = shapes, parts.weight.device


def _expect(shapes: list[Any], at: int, weight: tuple[int, ...], channels: int) -> None:
    """A convolution's weight and its BatchNorm's vectors; statistics are both there or both missing."""
    found = shapes[at : at + 5]
    fits = found[0] == weight and all(shape is None or shape == (channels,) for shape in found[1:])
    if not fits or (found[3] is None) != (found[4] is None):
        raise UnsupportedBlockError(
            f"shapes that do not fit: {[None if shape is None else tuple(shape) for shape in found]}"
        )


def _check_squeeze_excite(shapes: list[Any], channels: int) -> None:
    w1, b1, w2, b2 = shapes[SE : SE + 4]
    hidden = w1[0]
    fits = w1[:2] == (hidden, channels) and w2[:2] == (channels, hidden)
    fits = fits and b1 in (None, (hidden,)) and b2 in (None, (channels,))
    if not fits:
        raise UnsupportedBlockError(f"squeeze-and-excite's weights {tuple(w1)} and {tuple(w2)} do not fit")
    if any(side != 1 for side in (*w1[2:], *w2[2:])):
        raise UnsupportedBlockError("squeeze-and-excite's convolutions are not plain 1x1")


def _check_plain(parts: MBConvParts | ConvLayerParts, tensors: list[Tensor | None]) -> None:
    conv = parts.layer.conv if isinstance(parts, ConvLayerParts) else parts.project.conv
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            check_plain(tensor, conv)  # type: ignore[arg-type]
    device = parts.weight.device
    if any(t is not None and t.device != device for t in tensors):
        raise UnsupportedBlockError("its tensors are on more than one device")


def check_plain(weight: Tensor, module: nn.Module | None = None) -> None:
    """Tensor subclasses (quantized, distributed, fake) mean something the kernels do not know."""
    if type(weight) not in _PLAIN:
        if getattr(module, "_is_fsdp_managed_module", False):
            raise ShardedWeightError(
                "its weights are sharded; it decides in its forward, where they are whole"
            )
        raise UnsupportedBlockError(f"a weight is a {type(weight).__name__}, not a plain tensor")


def _modules(parts: MBConvParts | ConvLayerParts) -> list[nn.Module | None]:
    """Convolution and BatchNorm in turns, then the layers of squeeze-and-excite."""
    if isinstance(parts, ConvLayerParts):
        return [parts.layer.conv, parts.layer.bn]
    convs: tuple[ConvBN | None, ...] = (parts.expand, parts.depthwise, parts.project)
    found: list[nn.Module | None] = []
    for part in convs:
        found += (None, None) if part is None else (part.conv, part.bn)
    se = parts.squeeze_excite
    return [*found, *((None, None) if se is None else (se.fc1, se.fc2))]


def _places(parts: MBConvParts | ConvLayerParts) -> list[tuple[nn.Module | None, str]]:
    """(module, attribute) of every tensor; the convolutions' biases, which must be missing, come last."""
    modules = _modules(parts)
    layers = modules[6:]
    places: list[tuple[nn.Module | None, str]] = []
    for conv, bn in zip(modules[:6:2], modules[1:6:2], strict=True):
        places += [(conv, "weight"), *((bn, name) for name in _BATCH_NORM)]
    for layer in layers:
        places += [(layer, "weight"), (layer, "bias")]
    return [*places, *((conv, "bias") for conv in modules[:6:2])]


def slots_of(parts: MBConvParts | ConvLayerParts) -> Slots:
    """The dictionaries that hold the tensors, so that fetching them need not go through ``nn.Module.__getattr__``."""

    def slot(module: nn.Module | None, name: str) -> tuple[dict[str, Any], str]:
        if module is None:
            return _NOWHERE, ""
        spaces = (module.__dict__, module._parameters, module._buffers)
        return next((space for space in spaces if name in space), module.__dict__), name

    return Slots(tuple(slot(*place) for place in _places(parts)))


def _fetch(parts: MBConvParts | ConvLayerParts) -> list[Tensor | None]:
    if parts.slots is None:
        return [None if module is None else getattr(module, name) for module, name in _places(parts)]
    return parts.slots.fetch()  # type: ignore[no-any-return]
