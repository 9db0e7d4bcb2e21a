"""An optimized model as JSON and tensors, and back: everything is checked, because files are anybody's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..backend.network import Block, Conv, Network, SqueezeExcite
from ..backend.reference.activations import ACTIVATIONS
from ..data.images import INTERPOLATIONS, Preset
from ..nn import mbconv
from ..nn.exact import name_of
from ..nn.parts import activation_name, check_pointwise
from .extract import LINEAR
from .folded import FACTS, FORMAT, Folded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Strides and paddings beyond this belong to no network; they would only ask for memory.
_LARGEST = 64
#: Layers after the network that have no tensors.
_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "flatten": nn.Flatten,
    "none": nn.Identity,
    **mbconv.ACTIVATIONS,
    **mbconv.GATES,
}


def encode(folded: Folded, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The record of a model; its tensors are put into ``tensors``."""

    def conv(name: str, layer: Conv | None) -> dict[str, Any] | None:
        if layer is None:
            return None
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = layer.weight, layer.bias
        return {key: getattr(layer, key) for key in ("stride", "padding", "groups", "act")}

    def excite(name: str, layer: SqueezeExcite | None) -> dict[str, Any] | None:
        if layer is None:
            return None
        for key in ("w1", "b1", "w2", "b2"):
            tensors[f"{name}.{key}"] = getattr(layer, key)
        return {"act": layer.act, "gate": layer.gate}

    network = folded.network
    if network.classifier is not None:
        tensors["classifier.weight"], tensors["classifier.bias"] = network.classifier
    blocks = [
        {
            "expand": conv(f"blocks.{i}.expand", block.expand),
            "depthwise": conv(f"blocks.{i}.depthwise", block.depthwise),
            "squeeze_excite": excite(f"blocks.{i}.squeeze_excite", block.squeeze_excite),
            "project": conv(f"blocks.{i}.project", block.project),
            "residual": block.residual,
        }
        for i, block in enumerate(network.blocks)
    ]
    return {
        "format": FORMAT,
        "source": folded.source,
        "dtype": str(folded.dtype).removeprefix("torch."),
        "keep_dims": folded.keep_dims,
        "facts": {key: value for key, value in folded.facts.items() if type(value) in (int, str)},
        "tail": [_encode_layer(f"tail.{i}", layer, tensors) for i, layer in enumerate(folded.tail)],
        "preset": None if folded.preset is None else folded.preset._asdict(),
        "classes": folded.classes,
        "network": {
            "stem": conv("stem", network.stem),
            "blocks": blocks,
            "head": conv("head", network.head),
            "classifier": network.classifier is not None,
            "pool": network.pool,
        },
    }


def _encode_layer(name: str, layer: nn.Module, tensors: dict[str, Tensor]) -> str:
    """The kind of a layer after the network.

    Raises:
        UnsupportedBlockError: it is of none that files hold.
    """
    kind = "linear" if name_of(layer) in LINEAR else ""
    if name_of(layer) == "torch.nn.modules.conv.Conv2d" and layer.kernel_size == (1, 1):
        check_pointwise("its convolution", layer)  # type: ignore[arg-type]
        kind = "conv1x1"
    if kind:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        tensors[f"{name}.weight"] = weight.detach().float().contiguous()
        if isinstance(bias, Tensor):
            tensors[f"{name}.bias"] = bias.detach().float()
        return kind
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return "flatten"
    return activation_name(layer)


class DamageError(Exception):
    """What a file holds is not what :func:`save` writes."""


def decode(record: Any, tensors: dict[str, Tensor]) -> Folded:
    """The model of a record; every tensor is taken from ``tensors``."""
    fields = _Fields(record, "the header")
    if fields.take("format", int) != FORMAT:
        raise DamageError(f"format {record['format']}, this version reads format {FORMAT}")
    network = _network(_Fields(fields.take("network", dict), "network"), tensors)
    tail = tuple(_layer(f"tail.{i}", kind, tensors) for i, kind in enumerate(fields.take("tail", list)))
    if tensors:
        raise DamageError(f"tensors that belong to nothing: {', '.join(sorted(tensors))}"[:200])
    dtype = fields.take("dtype", str, DTYPES.__contains__)
    preset, classes = fields.take("preset", (dict, type(None))), fields.take("classes", (list, type(None)))
    return Folded(
        network,
        DTYPES[dtype],
        fields.take("keep_dims", bool),
        fields.take("source", str),
        tail,
        _facts(fields.take("facts", dict)),
        None if preset is None else _preset(_Fields(preset, "preset")),
        None if classes is None else tuple(classes),
    )


class _Fields:
    """A JSON object whose fields are checked as they are taken."""

    def __init__(self, record: Any, name: str) -> None:
        if not isinstance(record, dict):
            raise DamageError(f"{name}: expected an object, got {type(record).__name__}")
        self._record, self.name = record, name

    def take(
        self, key: str, kind: type | tuple[type, ...], fits: Callable[[Any], bool] = lambda value: True
    ) -> Any:
        value = self._record.get(key, ...)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # Not isinstance: True is no number of strides.
        if type(value) not in kinds or not fits(value):
            got = "nothing" if value is ... else repr(value)[:60]
            raise DamageError(f"{self.name}: {key}: expected another {kinds[0].__name__}, got {got}")
        return value

    def inside(self, key: str, optional: bool = False) -> _Fields | None:
        """A field that is an object, or may be missing."""
        value = self.take(key, (dict, type(None)) if optional else dict)
        return None if value is None else _Fields(value, f"{self.name}.{key}")


def _network(fields: _Fields, tensors: dict[str, Tensor]) -> Network:
    blocks = tuple(
        _block(_Fields(record, f"blocks.{i}"), tensors)
        for i, record in enumerate(fields.take("blocks", list))
    )
    stem = _conv(fields.inside("stem"), "stem", tensors)
    assert stem is not None
    classifier = None
    if fields.take("classifier", bool):
        classifier = _affine(tensors, "classifier.weight", "classifier.bias", 2)
    head = _conv(fields.inside("head", optional=True), "head", tensors)
    return Network(stem, blocks, head, classifier, fields.take("pool", bool))


def _block(fields: _Fields, tensors: dict[str, Tensor]) -> Block:
    def conv(key: str, optional: bool = False) -> Any:
        return _conv(fields.inside(key, optional), f"{fields.name}.{key}", tensors)

    excite, name = fields.inside("squeeze_excite", optional=True), f"{fields.name}.squeeze_excite"
    squeeze_excite = None
    if excite is not None:
        w1, b1 = _affine(tensors, f"{name}.w1", f"{name}.b1", 2)
        w2, b2 = _affine(tensors, f"{name}.w2", f"{name}.b2", 2)
        act, gate = (excite.take(key, str, ACTIVATIONS.__contains__) for key in ("act", "gate"))
        squeeze_excite = SqueezeExcite(w1, b1, w2, b2, act, gate)
    return Block(
        conv("expand", optional=True),
        conv("depthwise"),
        squeeze_excite,
        conv("project"),
        fields.take("residual", bool),
    )


def _layer(name: str, kind: Any, tensors: dict[str, Tensor]) -> nn.Module:
    if kind in ("linear", "conv1x1"):
        rank, bias = 2 if kind == "linear" else 4, None
        if f"{name}.bias" in tensors:
            weight, bias = _affine(tensors, f"{name}.weight", f"{name}.bias", rank)
        else:
            weight = _tensor(tensors, f"{name}.weight", rank)
        if any(size != 1 for size in weight.shape[2:]):
            raise DamageError(f"{name}: expected a 1x1 kernel, got {list(weight.shape)}")
        sizes = weight.shape[1], weight.shape[0]
        # Without memory of its own, which the file's sizes would decide.
        layer: nn.Module
        if kind == "linear":
            layer = nn.Linear(*sizes, bias is not None, device="meta")
        else:
            layer = nn.Conv2d(*sizes, 1, bias=bias is not None, device="meta")
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
        return layer.requires_grad_(False).eval()
    if not isinstance(kind, str) or kind not in _LAYERS:
        raise DamageError(f"{name}: expected linear, conv1x1, {', '.join(_LAYERS)}, got {kind!r}"[:200])
    return _LAYERS[kind]().eval()


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    for key, value in record.items():
        if key not in (*FACTS, "images_name") or type(value) not in (int, str):
            raise DamageError(f"facts: {key}: expected a number or text of a known name, got {value!r}"[:200])
    return record


def _conv(fields: _Fields | None, name: str, tensors: dict[str, Tensor]) -> Conv | None:
    if fields is None:
        return None
    padding = fields.take("padding", (list, str), _is_padding)
    return Conv(
        *_affine(tensors, f"{name}.weight", f"{name}.bias", 4),
        fields.take("stride", int, lambda value: 1 <= value <= _LARGEST),
        padding if padding == "same" else tuple(padding),
        fields.take("groups", int, lambda value: 1 <= value < 2**31),
        fields.take("act", str, ACTIVATIONS.__contains__),
    )


def _is_padding(value: Any) -> bool:
    if isinstance(value, str):
        return value == "same"
    return len(value) == 4 and all(type(side) is int and 0 <= side <= _LARGEST for side in value)


def _affine(tensors: dict[str, Tensor], weight: str, bias: str, rank: int) -> tuple[Tensor, Tensor]:
    """A layer's weight of so many dimensions, and its bias."""
    w, b = _tensor(tensors, weight, rank), _tensor(tensors, bias, 1)
    if len(w) != len(b) or not w.numel():
        raise DamageError(f"{bias}: expected as many as {weight} {list(w.shape)} has rows, got {len(b)}")
    return w, b


def _tensor(tensors: dict[str, Tensor], name: str, rank: int) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise DamageError(f"{name} is missing")
    if tensor.dtype != torch.float32 or tensor.dim() != rank:
        raise DamageError(
            f"{name}: expected float32 with {rank} dimensions, got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor


def _preset(fields: _Fields) -> Preset:
    def three(value: list[Any]) -> bool:
        return len(value) == 3 and all(
            type(number) in (int, float) and math.isfinite(number) for number in value
        )

    resize, crop = (fields.take(key, int, lambda value: 1 <= value <= 2**16) for key in ("resize", "crop"))
    interpolation = fields.take("interpolation", str, INTERPOLATIONS.__contains__)
    mean = fields.take("mean", list, three)
    std = fields.take("std", list, lambda value: three(value) and 0 not in value)
    return Preset(resize, crop, interpolation, tuple(mean), tuple(std))
