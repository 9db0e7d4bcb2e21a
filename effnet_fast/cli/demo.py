"""Five real photos through EfficientNet-Lite0 with its ImageNet weights: stock, patched and optimized, side by side.

The exit code is 1 if one of our networks differs in its first choice on any photo, or an fp32 one in any logit by more
than 1e-4, or if no block ran fused, which would compare the stock network with itself.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

import effnet_fast

from ..bench.load import CONSEQUENCE, NOTEWORTHY, Others
from ..data import images, samples
from ..data.labels import imagenet_classes
from . import contest, options
from .classify import summary, top_classes
from .output import Output, line_width

HELP = "stock and our networks on real photos, side by side"

#: Largest difference of any logit in fp32; they are of size 10, and rounding gives about 1e-5.
TOLERANCE = 1e-4

#: A bf16 network may choose another class if the stock network gives it a probability this close to its first.
TIE = 0.02

#: Characters of the longest bar.
BAR = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=options.positive, default=25, help="rounds of timing at most (default: 25)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile, which takes a minute to start"
    )
    options.add_device(parser)
    options.add_backend(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    device = options.device(arguments.device)
    samples.require("demo", samples.packages())
    paths = samples.photo_paths()
    pixels = torch.stack([images.read_image(path, images.LITE0_PRESET) for path in paths.values()])
    x = images.normalize(pixels, images.LITE0_PRESET).to(device)
    # TF32 would make the stock network itself less exact than the tolerance. `flags` would also switch cuDNN off.
    with (
        options.backend(arguments.backend),
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        entered = contest.prepare(samples.lite0().to(device), x[:1], arguments.compile, output)
        networks = entered.networks
        shown = [name for name, network in networks.items() if network.ours or name == contest.STOCK]
        logits = {name: networks[name].run(x).float().cpu() for name in shown}
        photos = _compare(list(paths), logits, networks)
        others = Others()
        latency = contest.latency(networks, x[:1], arguments.rounds, output)
        elsewhere = others.cores()
        report = effnet_fast.report(entered.patched)
    exact = [name for name in shown if networks[name].ours and networks[name].exact]
    worst = max(photo["max_logit_difference"][name] for photo in photos for name in exact)
    same = sum(all(photo["same_top1"].values()) for photo in photos)
    passed = worst <= TOLERANCE and same == len(photos) and report.fused > 0
    best = min((name for name in latency if networks[name].ours), key=latency.__getitem__)
    fastest_stock = min((name for name in latency if not networks[name].ours), key=latency.__getitem__)
    ratio = latency[fastest_stock] / latency[best]
    output.data(
        {
            "passed": passed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "tolerance": TOLERANCE,
            "max_logit_difference": worst,
            "photos": photos,
            "latency_ms": latency,
            "fastest": best,
            "fastest_stock": fastest_stock,
            "speedup_over_fastest_stock": ratio,
            "cores_used_by_others": elsewhere,
            "missing": entered.missing,
            "blocks": report.as_dicts(),
        }
    )
    _show_photos(photos, shown, exact, output)
    _show_times(latency, networks, device, output)
    output.sentence(
        f"fastest: {best}, {latency[best]:.2f} ms, {ratio:.2f} times as fast as the fastest stock network ({fastest_stock})"
    )
    if device.type == "cpu" and elsewhere is not None and elsewhere > NOTEWORTHY:
        output.sentence(f"others used {elsewhere:.1f} cores of this machine meanwhile: {CONSEQUENCE}")
    output.line()
    for name, reason in entered.missing.items():
        output.sentence(f"not here: {name} ({reason})")
    output.sentence(f"patched network: {summary(report)}")
    if report.fused == 0:
        output.line("FAILED: no block ran fused, so nothing was compared; see: effnet-fast info")
    else:
        output.sentence(
            f"{'passed' if passed else 'FAILED'}: same first choice of all networks on {same} of {len(photos)} photos, "
            f"largest logit difference in fp32 {worst:.1e} (allowed {TOLERANCE:.0e})"
        )
    return 0 if passed else 1


def _compare(
    names: list[str], logits: dict[str, Tensor], networks: dict[str, contest.Network]
) -> list[dict[str, Any]]:
    """For each photo the first choices of every network, and how far ours are from the stock network's."""
    labels = imagenet_classes()
    stock = logits[contest.STOCK]
    choices = {name: top_classes(values, labels, 3) for name, values in logits.items()}
    probabilities = {name: values.double().softmax(1) for name, values in logits.items()}
    # NaN must not pass: it compares false with everything.
    differences = {
        name: (stock - values).abs().nan_to_num(nan=float("inf")).amax(1).tolist()
        for name, values in logits.items()
    }
    ours = [name for name in logits if name != contest.STOCK]
    photos = []
    for index, photo in enumerate(names):
        first = [guess["index"] for guess in choices[contest.STOCK][index]]
        photos.append(
            {
                "photo": photo,
                "top": {name: found[index] for name, found in choices.items()},
                # Of the stock network's first choices, whatever the others would choose.
                "probabilities": {
                    name: found[index, first].tolist() for name, found in probabilities.items()
                },
                "same_top1": {
                    name: _agrees(choices[name][index][0]["index"], stock[index], networks[name].exact)
                    for name in ours
                },
                "max_logit_difference": {name: differences[name][index] for name in ours},
            }
        )
    return photos


def _agrees(choice: int, stock: Tensor, exact: bool) -> bool:
    if choice == int(stock.argmax()):
        return True
    probabilities = stock.double().softmax(0)
    return not exact and bool(probabilities[choice] >= probabilities.max() - TIE)


def _show_photos(photos: list[dict[str, Any]], shown: list[str], exact: list[str], output: Output) -> None:
    rows = []
    for photo in photos:
        for rank, guess in enumerate(photo["top"][contest.STOCK]):
            worst = max(photo["max_logit_difference"][name] for name in exact)
            ends = ("yes" if all(photo["same_top1"].values()) else "NO", f"{worst:.0e}")
            rows.append(
                (
                    *(photo["photo"] if rank == 0 else "", guess["label"][:22]),
                    *(f"{photo['probabilities'][name][rank]:.3f}" for name in shown),
                    *(ends if rank == 0 else ("", "")),
                )
            )
    # Whole names would not fit a terminal.
    short = [name.removeprefix("optimize, ") for name in shown]
    columns = ("photo", "class", *short, "same", "diff")
    title = "EfficientNet-Lite0 on ImageNet's classes, probabilities (fp32, bf16: optimized)"
    # The largest difference is also in the last line.
    output.table(columns, rows, title, (("diff",),))
    output.line()


def _show_times(
    latency: dict[str, float], networks: dict[str, contest.Network], device: torch.device, output: Output
) -> None:
    most = 1e3 / min(latency.values())
    # Beside name, median and images a second.
    longest = min(BAR, max(8, (line_width() or 80) - 2 - max(map(len, latency)) - 2 - 9 - 2 - 8))
    rows = [
        (name, f"{value:.2f}", f"{1e3 / value:.1f}", output.bar(1e3 / value / most, longest))
        for name, value in latency.items()
    ]
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    size = images.LITE0_PRESET.crop
    output.table(
        ("network", "median ms", "images/s", ""), rows, f"one photo of {size} x {size} at a time, {where}"
    )
    output.line()
