"""Launches and host time of networks, fused beside eager torchvision, on the fake device.

    python tests/fake_cuda/measure.py                     # B0 and B5, inference at batch 1 and a training step
    python tests/fake_cuda/measure.py b0 --mode inference --dtype bf16 --launches

Host time is CPU time of one thread, the median over rounds in which the networks take turns. A real driver adds about two
microseconds a launch to both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cuda.process import Device

SIZES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["b0", "b5"], metavar="NAME", help="b0 to b7")
    parser.add_argument("--mode", choices=("inference", "training"), help="one of the two only")
    parser.add_argument(
        "--dtype",
        help="autocast, bf16, fp16 or fp32 (default: bf16 and autocast in inference, else autocast)",
    )
    parser.add_argument(
        "--kinds", nargs="+", default=["patched torchvision", "torchvision"], help="effnet_fast, timm, ..."
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, help="image size (default: the network's own)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--launches", action="store_true", help="list launches by kernel")
    parser.add_argument("--json", type=Path, help="write everything here too")
    options = parser.parse_args()
    rows = []
    for name in options.names:
        for mode in [options.mode] if options.mode else ["inference", "training"]:
            both = ["bf16", "autocast"] if mode == "inference" else ["autocast"]
            for dtype in [options.dtype] if options.dtype else both:
                shape = (dtype, options.batch, options.size or SIZES[name])
                rows += compare(
                    [(mode, name, kind, *shape) for kind in options.kinds], options.rounds, options.launches
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(
    cases: list[tuple[str, str, str, str, int, int]], rounds: int, names: bool
) -> list[dict[str, Any]]:
    """Measure and print cases that belong beside each other, in one process."""
    with Device() as device:
        run = device.run("networks.measure", cases, rounds)
    rows = []
    for number, (case, result) in enumerate(zip(cases, run.value, strict=True)):
        log = run.parts[str(number)]
        mode, name, kind, dtype, batch, size = case
        print(
            f"{name} {mode:9} {dtype:8} batch {batch} {size} px  {kind:20} {log.kernels:5} launches"
            f"  host {result['median_ms']:6.2f} ms ({result['least_ms']:.2f} to {result['most_ms']:.2f})"
            f"  first call {result['first_s']:.1f} s",
            flush=True,
        )
        for line in run.log.violations:
            print(f"    violation: {line}")
        if names:
            for kernel, count in (
                log.names + Counter(operation[0] for operation in log.operations)
            ).most_common():
                print(f"    {count:5} {kernel}")
        rows.append({"case": case, "launches": log.names, "operations": log.operations, **result})
    return rows


if __name__ == "__main__":
    main()
