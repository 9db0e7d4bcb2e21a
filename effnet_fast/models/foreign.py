"""Names of EfficientNet's parameters in timm and efficientnet_pytorch, and what else those models do differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

State = Mapping[str, Tensor]


class Block(NamedTuple):
    """A block's modules in one library's names, in the order of the computation; no expansion: ``None``."""

    expand: str | None
    expand_bn: str | None
    depthwise: str
    depthwise_bn: str
    reduce: str
    widen: str
    project: str
    project_bn: str


class Names(NamedTuple):
    """One library's names of modules."""

    library: str
    stem: str
    stem_bn: str
    head: str
    head_bn: str
    classifier: str
    #: Of blocks with an expansion, and without.
    wide: Block
    narrow: Block
    #: A block's name from its stage, its place there and its place in the network.
    block: str
    #: What the library's BatchNorms add to the variance.
    eps: float
    #: Whether all its models pad as TensorFlow does, which at stride 2 is not the padding of torchvision.
    same_padding: bool


_SE = ("se.conv_reduce", "se.conv_expand")
TIMM = Names(
    *("timm", "conv_stem", "bn1", "conv_head", "bn2", "classifier"),
    Block("conv_pw", "bn1", "conv_dw", "bn2", *_SE, "conv_pwl", "bn3"),
    Block(None, None, "conv_dw", "bn1", *_SE, "conv_pw", "bn2"),
    *("blocks.{stage}.{place}", 1e-5, False),
)
_INNER = ("_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2")
EFFICIENTNET_PYTORCH = Names(
    *("efficientnet_pytorch", "_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc"),
    Block("_expand_conv", "_bn0", *_INNER),
    Block(None, None, *_INNER),
    *("_blocks.{index}", 1e-3, True),
)


def library_of(state: State) -> Names | None:
    """Whose names these are; ``None`` for torchvision's, which are this package's, and for others."""
    return next((names for names in (TIMM, EFFICIENTNET_PYTORCH) if f"{names.stem}.weight" in state), None)


def renamed(state: State, names: Names, own: State) -> dict[str, Tensor]:
    """``state`` in the names of ``own``, the state dict of the model it is for.

    Entries that this model has no place for keep their names.
    """
    ours = dict(_modules(names, own))
    result = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        result[f"{ours.get(module, module)}.{leaf}" if module else key] = value
    return result


def _modules(names: Names, own: State) -> Iterable[tuple[str, str]]:
    """(their name, our name) of every module that has parameters."""
    last = max(int(key.split(".")[1]) for key in own if key.startswith("features."))
    yield names.stem, "features.0.0"
    yield names.stem_bn, "features.0.1"
    yield names.head, f"features.{last}.0"
    yield names.head_bn, f"features.{last}.1"
    yield names.classifier, "classifier.1"
    blocks = dict.fromkeys(key.partition(".block.")[0] for key in own if ".block." in key)
    for index, block in enumerate(blocks):
        _, stage, place = block.split(".")
        theirs = names.block.format(stage=int(stage) - 1, place=place, index=index)
        # [expand], depthwise, squeeze-and-excite, project: the depthwise convolution has one input a group.
        expands = own[f"{block}.block.0.0.weight"].shape[1] != 1
        order = names.wide if expands else names.narrow
        layers = [f"{i}.{j}" for i in range(2 if expands else 1) for j in range(2)]
        se = 2 if expands else 1
        layers += [f"{se}.fc1", f"{se}.fc2", f"{se + 1}.0", f"{se + 1}.1"]
        for name, layer in zip((part for part in order if part is not None), layers, strict=True):
            yield f"{theirs}.{name}", f"{block}.block.{layer}"
