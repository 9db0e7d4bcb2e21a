"""The kernels of one MBConv block with their times, for PyTorch and for this package.

python benchmarks/profile_block.py --shape b0-stage3-k5s2 --batch 64 --dtype bf16 --out profile.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cases, providers, shapes
from effnet_fast.bench.targets import DTYPES
from effnet_fast.errors import BackendError

CALLS = 10


def kernels(step: providers.Step, device: torch.device) -> list[dict[str, Any]]:
    """Time spent in each kernel (on the CPU: in each operator itself), microseconds a call, longest first."""
    on_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    for _ in range(3):
        step()
    with profile(activities=[activity]) as trace:
        for _ in range(CALLS):
            step()
        if on_cuda:
            torch.cuda.synchronize()
    rows = []
    for event in trace.key_averages():
        time = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if time > 0:
            rows.append({"kernel": event.key, "calls": event.count / CALLS, "us": round(time / CALLS, 3)})
    return sorted(rows, key=lambda row: -row["us"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="b0-stage3-k5s1-res")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {shape.name: shape for shape in shapes.shapes("mbconv")}
    if arguments.shape not in found:
        parser.error(f"unknown shape {arguments.shape}; python benchmarks/shapes.py lists them")
    report = []
    for mode in ("infer", "train"):
        dtype = DTYPES[arguments.dtype][0]
        case = cases.mbconv(found[arguments.shape], mode, arguments.batch, device, dtype)
        for provider in providers.names(device, quick=True):
            try:
                rows = kernels(providers.step(provider, case), device)
            except BackendError as error:
                print(f"{mode}, {provider}: {error}\n")
                continue
            report.append({"shape": case.name, "mode": mode, "provider": provider, "kernels": rows})
            print(f"{case.name}, {mode}, {provider}: {sum(row['us'] for row in rows):.1f} us")
            for row in rows[:12]:
                print(f"{row['us']:10.1f} us {row['calls']:5.1f} x {row['kernel'][:90]}")
            print()
            # After each: the time for all of them may run out.
            if arguments.out:
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
