"""Five real photos through EfficientNet-Lite0 with its ImageNet weights, stock and patched, side by side.

The exit code is 1 if the patched network's first choice differs on any photo, or any logit by more than 1e-4,
or if no block ran fused, which would compare the stock network with itself.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import effnet_fast

from .. import images, samples
from ..labels import imagenet_classes
from . import options
from .classify import summary, top_classes
from .output import Output

HELP = "stock and patched network on real photos, side by side"

#: Largest difference of any logit; they are of size 10, and fp32 rounding gives about 1e-5.
TOLERANCE = 1e-4

#: Timing stops here even if rounds remain (on a busy machine), but not before three rounds.
TIMING_SECONDS = 15.0

#: The stock network is timed in both memory formats: which is faster depends on the machine.
STOCK, STOCK_LAST, PATCHED = "stock", "stock, channels_last", "patched"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=options.positive, default=25, help="rounds of timing at most (default: 25)"
    )
    options.add_device(parser)
    options.add_backend(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    device = options.device(arguments.device)
    samples.require("demo", samples.packages())
    paths = samples.photo_paths()
    pixels = torch.stack([images.read_image(path, images.LITE0_PRESET) for path in paths.values()])
    x = images.normalize(pixels, images.LITE0_PRESET).to(device)
    stock = samples.lite0().to(device)
    patched = effnet_fast.patch(copy.deepcopy(stock))
    # TF32 would make the stock network itself less exact than the tolerance. `flags` would also switch cuDNN off.
    with (
        options.backend(arguments.backend),
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        photos = _compare(list(paths), stock(x).cpu(), patched(x).cpu())
        latency = _latency(stock, patched, x, arguments.rounds, output)
        report = effnet_fast.report(patched)
    worst = max(photo["max_logit_difference"] for photo in photos)
    agree = worst <= TOLERANCE and all(photo["same_top1"] for photo in photos)
    passed = agree and report.fused > 0
    ratio = min(latency[STOCK], latency[STOCK_LAST]) / latency[PATCHED]
    output.data(
        {
            "passed": passed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "tolerance": TOLERANCE,
            "max_logit_difference": worst,
            "photos": photos,
            "latency_ms": latency,
            "speedup_over_fastest_stock": ratio,
            "blocks": report.as_dicts(),
        }
    )
    _show(photos, latency, ratio, device, output)
    output.line(f"patched network: {summary(report)}")
    if report.fused == 0:
        output.line("FAILED: no block ran fused, so nothing was compared; see: effnet-fast info")
    else:
        output.line(
            f"{'passed' if passed else 'FAILED'}: same first choice on {sum(photo['same_top1'] for photo in photos)} "
            f"of {len(photos)} photos, largest logit difference {worst:.1e} (allowed {TOLERANCE:.0e})"
        )
    return 0 if passed else 1


def _compare(names: list[str], stock: Tensor, patched: Tensor) -> list[dict[str, Any]]:
    labels = imagenet_classes()
    # NaN must not pass: it compares false with everything.
    differences = (stock - patched).abs().nan_to_num(nan=float("inf")).amax(1).tolist()
    rows = zip(
        names, top_classes(stock, labels, 3), top_classes(patched, labels, 3), differences, strict=True
    )
    return [
        {
            "photo": name,
            "stock": before,
            "patched": after,
            "same_top1": before[0]["index"] == after[0]["index"],
            "max_logit_difference": difference,
        }
        for name, before, after, difference in rows
    ]


def _latency(
    stock: nn.Module, patched: nn.Module, x: Tensor, rounds: int, output: Output
) -> dict[str, float]:
    """Median milliseconds for one photo, by name; the networks take turns, so that noise hits all alike."""
    image = x[:1].contiguous()
    last = image.contiguous(memory_format=torch.channels_last)
    stock_last = copy.deepcopy(stock).to(memory_format=torch.channels_last)
    networks: dict[str, Callable[[], Tensor]] = {
        STOCK: lambda: stock(image),
        STOCK_LAST: lambda: stock_last(last),
        PATCHED: lambda: patched(last),
    }
    times: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        for _ in range(2):
            network()
    deadline = time.perf_counter() + TIMING_SECONDS
    with output.progress("timing", rounds) as advance:
        for done in range(rounds):
            if done >= 3 and time.perf_counter() > deadline:
                break
            for name, network in networks.items():
                times[name].append(_milliseconds(network, x.device))
            advance()
    return {name: statistics.median(values) for name, values in times.items()}


def _milliseconds(run: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def _show(
    photos: list[dict[str, Any]],
    latency: dict[str, float],
    ratio: float,
    device: torch.device,
    output: Output,
) -> None:
    rows = []
    for photo in photos:
        for rank, (before, after) in enumerate(zip(photo["stock"], photo["patched"], strict=True)):
            first = rank == 0
            rows.append(
                (
                    photo["photo"] if first else "",
                    *(before["label"], f"{before['probability']:.3f}"),
                    *(after["label"], f"{after['probability']:.3f}"),
                    ("yes" if photo["same_top1"] else "NO") if first else "",
                    f"{photo['max_logit_difference']:.1e}" if first else "",
                )
            )
    columns = ("photo", "stock", "prob.", "patched", "prob.", "same", "logit diff")
    output.table(columns, rows, "EfficientNet-Lite0, ImageNet classes")
    output.line()
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    output.table(
        ("network", "median ms"),
        [(name, f"{value:.2f}") for name, value in latency.items()],
        f"one photo of 224 x 224, fp32, {where}",
    )
    output.line(f"fastest stock / patched = {ratio:.2f}")
    output.line()
