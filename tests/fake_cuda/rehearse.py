"""What the stages of scripts/gpu.sh compile, and how long that takes, on the fake device; the cache it fills is kept.

    make gpu-cache PYTHON=python3.12                         # into build/triton, where gpu.sh looks
    python tests/fake_cuda/rehearse.py --capability 80 --cache DIR

A GPU is not needed for compiling, so the cache can be filled on any machine and carried, with the checkout, to the one that
has the GPU. Triton finds its entries again by a hash of itself (its Python files and libtriton.so, which is another for
every Python version), of ptxas, of the architecture, the options and the kernels' sources and line numbers; not of paths, torch
or the driver. So Triton's version and Python's must be those of the machine with the GPU. That a real GPU finds every
entry is not proven: launches are those of the fake device.

Nothing computes: a test that reads values off the device fails at that line, and what it would have launched after it is not
compiled here. Inductor's kernels are compiled again on the machine with the GPU, whose cache is not this one.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cuda.build import ROOT
from fake_cuda.process import Device, JobError


def models(mode: str) -> str:
    """The networks that gpu.sh measures: its MODELS_INFER or MODELS_TRAIN."""
    return " ".join(option(f"MODELS_{mode}"))


def option(name: str) -> tuple[str, ...]:
    """Arguments that gpu.sh keeps in a variable where there is a GPU."""
    found = re.search(rf'\b{name}="(.+?)"', (ROOT / "scripts" / "gpu.sh").read_text())
    assert found is not None
    return tuple(found[1].split())


def stages() -> dict[str, tuple[str, ...]]:
    """The stages that compile, as jobs and their arguments."""
    benchmarks = tuple(
        str(ROOT / "benchmarks" / f"test_{name}.py") for name in ("mbconv", "depthwise", "pointwise")
    )
    return {
        "tests": ("workloads.tests", "-m", "gpu", str(ROOT / "tests")),
        "inference": ("workloads.steps", "inference", models("INFER"), "bf16"),
        "training": ("workloads.steps", "training", models("TRAIN"), "bf16"),
        "compile": (
            "workloads.compile_steps",
            models("INFER").split(",")[0],
            "bf16",
            "compile",
            "effnet-fast-compile",
        ),
        "shapes": ("workloads.tests", *benchmarks, "--benchmark-only", *option("SHAPES")),
        "profile": ("workloads.profile", "--batch", "64", "--dtype", "bf16"),
        "sanitizer": ("workloads.script", "sanitizer_subset"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--capability", type=int, default=90, help="compute capability of the GPU, 75, 80 or 90"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "triton")
    parser.add_argument("--only", nargs="+", choices=stages(), default=list(stages()))
    options = parser.parse_args()
    print("stage      kernels compiled  CPU seconds, compiling included")
    for name in options.only:
        before = compiled(options.cache)
        with Device(capability=options.capability, TRITON_CACHE_DIR=str(options.cache.resolve())) as device:
            try:
                run = device.run(*stages()[name])
                seconds = f"{run.value:.0f}"
                note = "".join(f"\n    violation: {line}" for line in run.log.violations)
            except JobError as error:
                seconds, note = "failed", f"\n    {str(error).strip().splitlines()[-1]}"
        print(
            f"{name:10} {compiled(options.cache) - before:16} {seconds:>12}{note}",
            flush=True,
        )


def compiled(cache: Path) -> int:
    """Kernels in a cache of Triton's."""
    return sum(1 for _ in cache.glob("*/*.cubin"))


if __name__ == "__main__":
    main()
