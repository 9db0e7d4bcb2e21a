"""How much of every network that other libraries build of MBConv blocks runs fused, and why the rest does not.

Usage: python scripts/coverage_table.py [--only PATTERN] [--write docs/coverage.md]

Networks are built on the meta device, so that only what they are made of counts; nothing is computed. Libraries that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from effnet_fast.errors import UnsupportedBlockError
from effnet_fast.inference.extract import extract, is_known
from effnet_fast.nn import tensors
from effnet_fast.patching import patch
from effnet_fast.patching.registry import candidates, original_class, read_parts, runner

ROOT = Path(__file__).resolve().parents[1]

#: Blocks that begin as MBConv does and that no kernel computes: counted beside those that adapters know.
OTHERS = {
    "torchvision.models.efficientnet.FusedMBConv": "a dense 3x3 convolution expands",
    "torchvision.models.maxvit.MBConv": "normalizes first, GELU, averages in the shortcut",
    "timm.models._efficientnet_blocks.EdgeResidual": "a dense convolution expands",
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": "two optional depthwise convolutions",
    "timm.models._efficientnet_blocks.CondConvResidual": "weights of their own for every image",
    "timm.models.maxxvit.MbConvBlock": "normalizes first, averages in the shortcut",
    "timm.models.efficientvit_mit.MBConv": "biases instead of normalization in places",
    "timm.models.efficientvit_mit.DSConv": "no adapter knows its layers",
    "timm.models.tiny_vit.MBConv": "GELU, an activation after the residual connection",
    "timm.models.gcvit.MbConvBlock": "GELU, no normalization, squeeze-and-excite of linear layers",
    "timm.models.rexnet.LinearBottleneck": "ReLU6 after squeeze-and-excite, adds a part of the channels",
    "timm.models.ghostnet.GhostBottleneck": "ghost modules instead of 1x1 convolutions",
    "timm.models.lowformer.MBConv": "biases instead of normalization in places",
    "geffnet.efficientnet_builder.EdgeResidual": "a dense convolution expands",
    "geffnet.efficientnet_builder.CondConvResidual": "weights of their own for every image",
}


class Row(NamedTuple):
    model: str
    inference: int
    training: int
    found: int
    optimize: str
    rest: str

    def __str__(self) -> str:
        counts = f"{self.inference} | {self.training} | {self.found}"
        return f"| {self.model} | {counts} | {self.optimize} | {self.rest} |"


Makers = dict[str, Callable[[], nn.Module]]


def _torchvision() -> Makers:
    models = importlib.import_module("torchvision.models")
    names = [
        name for name in models.list_models() if re.search("efficientnet|mobilenet|mnasnet|maxvit", name)
    ]
    options = {"weights": None}

    def make(name: str) -> nn.Module:
        parts = {"weights_backbone": None} if re.search("rcnn|lraspp|deeplab|ssd", name) else {}
        return models.get_model(name, **options, **parts)  # type: ignore[no-any-return]

    return {name: lambda name=name: make(name) for name in names}


#: Files of timm that build with blocks of this kind.
TIMM = (
    "efficientnet mobilenetv3 hardcorenas maxxvit efficientvit_mit tiny_vit gcvit rexnet ghostnet lowformer"
)


def _timm() -> Makers:
    timm = importlib.import_module("timm")
    names = [name for module in TIMM.split() for name in timm.list_models(module=module)]
    return {name: lambda name=name: timm.create_model(name) for name in names}


def _efficientnet_pytorch(package: str = "efficientnet_pytorch", kind: str = "b") -> Makers:
    network = importlib.import_module(package).EfficientNet
    names = [f"efficientnet-{kind}{i}" for i in range(9 if kind == "b" else 5)]
    return {name: lambda name=name: network.from_name(name) for name in names}


def _efficientnet_lite_pytorch() -> Makers:
    return _efficientnet_pytorch("efficientnet_lite_pytorch", "lite")


def _geffnet() -> Makers:
    geffnet = importlib.import_module("geffnet")
    names = [*geffnet.gen_efficientnet.__all__, *geffnet.mobilenetv3.__all__]
    names = [name for name in names if name[0].islower()]
    return {name: lambda name=name: geffnet.create_model(name) for name in names}


def _segmentation_models_pytorch() -> Makers:
    smp = importlib.import_module("segmentation_models_pytorch")
    names = [name for name in smp.encoders.encoders if re.search("efficientnet|mobilenet", name)]
    made: Makers = {
        f"Unet on {name}": lambda name=name: smp.Unet(name, encoder_weights=None) for name in names
    }
    plus = "efficientnet-b0", "mobilenet_v2", "timm-efficientnet-b0"
    return made | {
        f"DeepLabV3Plus on {name}": lambda name=name: smp.DeepLabV3Plus(name, encoder_weights=None)
        for name in plus
    }


def _transformers() -> Makers:
    library = importlib.import_module("transformers")
    names = "EfficientNet", "MobileNetV1", "MobileNetV2"

    def make(name: str) -> nn.Module:
        return getattr(library, f"{name}ForImageClassification")(getattr(library, f"{name}Config")())  # type: ignore[no-any-return]

    return {f"{name}ForImageClassification": lambda name=name: make(name) for name in names}


LIBRARIES: dict[str, Callable[[], Makers]] = {
    made.__name__[1:]: made
    for made in (
        *(_torchvision, _timm, _efficientnet_pytorch, _efficientnet_lite_pytorch, _geffnet),
        *(_segmentation_models_pytorch, _transformers),
    )
}


def installed(library: str) -> Makers:
    """The networks of a library; none where it is not installed."""
    try:
        return LIBRARIES[library]()
    except ImportError:
        return {}


def row(name: str, make: Callable[[], nn.Module]) -> Row | None:
    """One network's row; ``None`` if it holds no such block at all."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = make().eval()
        patch(model)
    blocks = [block for _, block in candidates(model)]
    others = Counter(kind for kind in map(_kind, model.modules()) if kind in OTHERS)
    found = len(blocks) + sum(others.values())
    if not found:
        return None
    counts, reasons = (
        [],
        Counter({f"{kind.rpartition('.')[2]}: {OTHERS[kind]}": n for kind, n in others.items()}),
    )
    for mode in (True, False):
        model.train(mode)
        refused = [reason for reason in map(_refusal, blocks) if reason]
        counts.append(len(blocks) - len(refused))
        more = Counter(f"{reason}{' (training)' if mode else ''}" for reason in refused)
        # What holds in both modes is said once.
        reasons = (
            Counter({k: n for k, n in reasons.items() if k.removesuffix(" (training)") not in more}) + more
        )
    training, inference = counts
    rest = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    return Row(name, inference, training, found, _optimize(model, inference), rest)


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _refusal(block: nn.Module) -> str:
    try:
        parts = read_parts(block)
        tensors.of(parts)
        runner(parts).plan(parts, torch.device("cpu"), torch.float32, block.training)
    except UnsupportedBlockError as error:
        return f"{original_class(block).__name__}: {error}"
    return ""


def _optimize(model: nn.Module, fused: int) -> str:
    if not is_known(model):
        return "blocks" if fused else "no"
    with suppress(UnsupportedBlockError):
        tail = extract(model).tail
        return "whole" + (f", then {', '.join(type(layer).__name__ for layer in tail)}" if tail else "")
    return "no"


def section(library: str, rows: list[Row]) -> Iterator[str]:
    inference, training, found = (
        sum(getattr(row, name) for row in rows) for name in ("inference", "training", "found")
    )
    whole = sum(row.optimize.startswith("whole") for row in rows)
    yield f"## {library} {version(library)}"
    yield ""
    yield (
        f"{len(rows)} networks. Of {found} blocks and layers {inference} run fused in inference, {training} in training. "
        f"`optimize` takes {whole} networks whole."
    )
    yield ""
    yield "| network | inference | training | of | `optimize` | the rest |"
    yield "|---|--:|--:|--:|---|---|"
    yield from map(str, rows)
    yield ""


HEAD = """# What is covered

Written by `python scripts/coverage_table.py --write docs/coverage.md`, on the CPU's kernels, of the libraries installed then;
`tests/test_coverage_page.py` holds a sample to it.

"inference" and "training" are blocks, and layers beside them (stem, last layer), that [`patch`](patching.md) runs fused, "of" all
that there are. A layer is counted only where its library has a module for it. `optimize` (see [cpu.md](cpu.md)): "whole" is one native
call, perhaps with layers of the model's own after it; "blocks" a copy with fused blocks; "no" is refused. Networks without any such
block are not listed: transformers' MobileNetV1 is one, whose layers stand alone, each with its activation.
"""


def page(only: str = "") -> str:
    lines = [HEAD]
    for library in LIBRARIES:
        made = {name: make for name, make in installed(library).items() if re.search(only, name)}
        rows = [found for found in (row(name, make) for name, make in made.items()) if found is not None]
        print(f"{library}: {len(rows)} of {len(made)} networks", file=sys.stderr)
        if rows:
            lines += section(library, rows)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names that match this pattern")
    parser.add_argument("--write", type=Path, help="the page")
    options = parser.parse_args()
    text = page(options.only)
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
