"""Where the CPU engine's time goes: every layer of a model with its GFLOP/s and GB/s; prints Markdown.

    python benchmarks/cpu_roofline.py --models b0 b4 --dtypes fp32 bf16 --threads 2

Time of a step is from the end of the one before to its own end, as one thread sees it; the figure is the lower third of
``--rounds`` runs. FLOP are those of convolutions and linear layers (a multiply-add is two), the activations' are not
counted. Bytes are what a step must read and write once: weights and the tensors that outlive it, wherever they lie.
The peak is measured: a 1x1 convolution of 480 to 3840 channels, which does nothing but multiply.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch

from effnet_fast.backend.cpu.engine import Program, compile_network
from effnet_fast.backend.network import Block, Conv, Network
from effnet_fast.inference.extract import extract
from effnet_fast.models.config import VARIANTS
from effnet_fast.models.efficientnet import create

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = ("stem", "expand + depthwise", "squeeze", "excite", "project", "head + pool", "classifier")


class Layer(NamedTuple):
    """What one step computes."""

    name: str
    flop: float
    bytes: float


def out_size(conv: Conv, size: int) -> int:
    if conv.padding == "same":
        return -(-size // conv.stride)
    return (size + conv.padding[0] + conv.padding[1] - conv.weight.shape[-1]) // conv.stride + 1


def layers(network: Network, size: int, element: int) -> Iterator[Layer]:
    """The steps of one image, in the engine's order."""
    stem, head, classifier = network.stem, network.head, network.classifier
    side = out_size(stem, size)
    channels = stem.weight.shape[0]
    pixels = side * side
    yield Layer(
        f"{size} x {size} x {stem.weight.shape[1]} -> {side} x {side} x {channels}",
        2.0 * stem.weight.numel() * pixels,
        4.0 * stem.weight.shape[1] * size * size + element * (stem.weight.numel() + channels * pixels),
    )
    for block in network.blocks:
        yield from block_layers(block, side, element)
        side = out_size(block.depthwise, side)
    assert head is not None and classifier is not None
    pixels, o, i = side * side, *head.weight.shape[:2]
    yield Layer(
        f"{i} -> {o} at {side} x {side}", 2.0 * o * i * pixels, element * (o * i + i * pixels) + 4.0 * o
    )
    yield Layer(f"{o} -> {len(classifier[0])}", 2.0 * classifier[0].numel(), element * classifier[0].numel())


def block_layers(block: Block, side: int, element: int) -> Iterator[Layer]:
    after = out_size(block.depthwise, side)
    channels, _, kernel, _ = block.depthwise.weight.shape
    inputs = channels if block.expand is None else block.expand.weight.shape[1]
    expand = 0 if block.expand is None else channels * inputs
    yield Layer(
        f"{inputs} -> {channels}, {kernel} x {kernel} / {block.depthwise.stride}, {side} -> {after}",
        2.0 * (expand * side * side + channels * kernel * kernel * after * after),
        element * (expand + inputs * side * side + channels * after * after),
    )
    if block.squeeze_excite is not None:
        for weight in (block.squeeze_excite.w1, block.squeeze_excite.w2):
            yield Layer(
                f"{weight.shape[1]} -> {weight.shape[0]}", 2.0 * weight.numel(), element * weight.numel()
            )
    outputs = block.project.weight.shape[0]
    residual = outputs if block.residual else 0
    yield Layer(
        f"{channels} -> {outputs} at {after} x {after}",
        2.0 * channels * outputs * after * after,
        element * (channels * outputs + (channels + outputs + residual) * after * after),
    )


def step_times(program: Program, x: torch.Tensor, rounds: int) -> list[tuple[int, float]]:
    """(kind, seconds) of every step."""
    runs = [program.step_times(x) for _ in range(rounds + 2)][2:]
    return [
        (runs[0][i][0], sorted(run[i][1] for run in runs)[len(runs) // 3] * 1e-9) for i in range(len(runs[0]))
    ]


def measured_peak(dtype: torch.dtype) -> float:
    """FLOP/s of a step that only multiplies."""
    stem = Conv(torch.randn(480, 3, 1, 1), torch.randn(480))
    head = Conv(torch.randn(3840, 480, 1, 1), torch.randn(3840))
    program = compile_network(Network(stem, (), head, None), dtype)
    return 2.0 * head.weight.numel() * 1024 / step_times(program, torch.randn(1, 3, 32, 32), 30)[1][1]


def table(name: str, dtype: str, rounds: int) -> None:
    size = VARIANTS[name].resolution
    torch.manual_seed(0)
    network = extract(create(name).eval())[0]
    program = compile_network(network, DTYPES[dtype])
    x = torch.randn(1, 3, size, size)
    times = step_times(program, x, rounds)
    peak = measured_peak(DTYPES[dtype])
    rows = list(layers(network, size, 4 if dtype == "fp32" else 2))
    assert len(rows) == len(times)
    total, flop = sum(t for _, t in times), sum(row.flop for row in rows)
    print(f"\n### {name}, {size} x {size}, batch 1, {dtype}, {torch.get_num_threads()} threads\n")
    print(
        f"{total * 1e3:.2f} ms, {flop / total * 1e-9:.0f} of {peak * 1e-9:.0f} GFLOP/s "
        f"({flop / total / peak:.0%})\n"
    )
    print("| step | layer | times | us each | share | GFLOP/s | of peak | GB/s |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    equal: dict[tuple[int, Layer], list[float]] = {}
    for row, (kind, seconds) in zip(rows, times, strict=True):
        equal.setdefault((kind, row), []).append(seconds)
    for (kind, row), all_seconds in equal.items():
        seconds = sum(all_seconds) / len(all_seconds)
        print(
            f"| {NAMES[kind]} | {row.name} | {len(all_seconds)} | {seconds * 1e6:.0f} | "
            f"{sum(all_seconds) / total:.1%} | {row.flop / seconds * 1e-9:.0f} | {row.flop / seconds / peak:.0%} | "
            f"{row.bytes / seconds * 1e-9:.1f} |"
        )
    for kind, title in enumerate(NAMES):
        seconds = sum(t for k, t in times if k == kind)
        flop = sum(row.flop for row, (k, _) in zip(rows, times, strict=True) if k == kind)
        print(
            f"| **{title}** | all | | {seconds * 1e6:.0f} | {seconds / total:.1%} | "
            f"{flop / max(seconds, 1e-12) * 1e-9:.0f} | {flop / max(seconds, 1e-12) / peak:.0%} | |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["b0", "b4"], help="names of effnet_fast.models")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        for dtype in args.dtypes:
            table(name, dtype, args.rounds)


if __name__ == "__main__":
    main()
