"""Fold a network once and write it to a file that ``classify`` and ``effnet_fast.load`` read on any machine."""

from __future__ import annotations

import argparse
from pathlib import Path

import effnet_fast

from ..data import images
from ..data.labels import labels_for
from ..inference.file import outputs
from ..inference.module import OptimizedModel
from ..system.writing import check_file
from . import network, options
from .output import Output

HELP = "write an optimized network to a file"

_DTYPES = ("fp32", "bf16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="b0 ... b7, or lite0 (default: b0)")
    network.add_weights(parser)
    parser.add_argument(
        "--labels", metavar="FILE", help="names of the classes, one a line (default: ImageNet's)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="fp32", help="what it is to compute in (default: fp32)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file, such as b0.effnet")


def run(arguments: argparse.Namespace, output: Output) -> int:
    name, weights = network.model_and_weights("optimize", arguments.model, arguments.weights)
    preset = images.LITE0_PRESET if name == "lite0" else images.preset_for(name, weights)
    path = Path(arguments.output)
    check_file(path, "optimize")
    with output.progress("optimizing", 3) as advance:
        model = network.load(name, weights, output).eval()
        advance()
        shape = (1, 3, preset.crop, preset.crop)
        fast = effnet_fast.optimize(model, shape, dtype=options.DTYPES[arguments.dtype])
        advance()
        # All of these networks run whole, and end in their classes.
        assert isinstance(fast, OptimizedModel)
        classes = labels_for(outputs(fast.folded), arguments.labels)
        effnet_fast.save(fast, path, preset=preset, classes=classes)
        advance()
    size = path.stat().st_size
    output.data(
        {"file": str(path), "bytes": size, "model": name, "weights": str(weights), "dtype": arguments.dtype}
    )
    output.sentence(f"{path}: {name}, {size / 1e6:.1f} MB, {fast.extra_repr()}")
    return 0
