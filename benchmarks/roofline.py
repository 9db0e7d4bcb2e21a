"""What B0 to B7 must move, the least time it takes, and the most images a second, for three designs.

    python benchmarks/roofline.py                              # at the rates of this device, measured now
    python benchmarks/roofline.py results.json                 # at the rates an earlier sweep measured
    python benchmarks/roofline.py --bandwidth 4.3e12 --dense 790e12 --batch 256 --mode train

The model is that of effnet_fast/bench/roofline.py: bytes through memory once a kernel, no launch gaps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from effnet_fast.bench import results, roofline, timing
from effnet_fast.bench.blocks import network
from effnet_fast.bench.targets import DTYPES, MODES
from effnet_fast.models import list_models

DESIGNS = ("eager", "compiled", "fused")


def table(device: roofline.Device, mode: str, batch: int, element_size: int) -> list[tuple[str, ...]]:
    """A header, then a row a model: MB, floor in milliseconds and ceiling in images a second, for each design."""
    rows = [("model", "px", *(f"{name} {unit}" for name in DESIGNS for unit in ("MB", "ms", "images/s")))]
    for name in list_models():
        net = network(name)
        cells = []
        for design in DESIGNS:
            launches = roofline.kernels(net, design, mode)
            seconds = roofline.seconds_per_image(launches, device, batch, element_size)
            megabytes = roofline.bytes_per_image(launches, batch, element_size) / 1e6
            cells += [f"{megabytes:.1f}", f"{seconds * 1e3:.4g}", f"{1 / seconds:,.1f}"]
        rows.append((name, str(net.resolution), *cells))
    return rows


def rates(arguments: argparse.Namespace) -> tuple[str, roofline.Device]:
    """The device asked for, with its name: given, from a file, or measured."""
    if arguments.bandwidth:
        given = (arguments.bandwidth, arguments.dense, arguments.stencil, arguments.special)
        return "the rates given", roofline.Device(*given)
    if arguments.file:
        facts = results.read(arguments.file)["environment"]
        tflops = facts.get("matmul_tflops", {}).get(arguments.dtype)
        if "copy_gb_per_s" not in facts or tflops is None:
            raise SystemExit(f"{arguments.file} has no rates for {arguments.dtype}")
        name = facts["device_name"]
        return name, roofline.Device(facts["copy_gb_per_s"] * 1e9, tflops * 1e12)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else results.facts("cpu")["cpu"]
    dense = timing.matmul_rate(device, DTYPES[arguments.dtype][0])
    return name, roofline.Device(timing.copy_bandwidth(device), dense)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="JSON of `effnet-fast bench`")
    parser.add_argument("--bandwidth", type=float, help="bytes a second of copying, read plus written")
    parser.add_argument("--dense", type=float, help="floating point operations a second of matrix products")
    parser.add_argument("--stencil", type=float, help="the same of depthwise convolutions")
    parser.add_argument("--special", type=float, help="exponentials and reciprocals a second")
    parser.add_argument("--mode", choices=MODES, default="infer")
    parser.add_argument("--batch", type=int, default=64, help="images that share the reading of the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    arguments = parser.parse_args()
    name, device = rates(arguments)
    dense = f", {device.dense_flops / 1e12:.3g} TFLOP/s" if device.dense_flops else ""
    print(f"{name}: copies {device.bandwidth / 1e9:.1f} GB/s{dense}")
    print(f"per image, {arguments.mode}, batch {arguments.batch}, {arguments.dtype}\n")
    rows = table(device, arguments.mode, arguments.batch, DTYPES[arguments.dtype][0].itemsize)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
