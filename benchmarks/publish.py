"""Measures this machine's CPU in stages, the most telling first, and files the results with the README's section.

    python benchmarks/publish.py                        # 20 minutes on 2 cores, on an idle machine please
    python benchmarks/publish.py --out build/bench      # the same, but README and benchmarks/results stay as they are
    python benchmarks/publish.py --rehearse             # tiny sizes, under build/rehearsal
    python benchmarks/publish.py --file OUT/e2e.json OUT/shapes.json    # file what `make gpu` measured elsewhere

Each stage has a time box, into which time saved by earlier ones is added, and leaves its results even if it or a
later one fails or is interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from effnet_fast.bench.providers import default_providers
from effnet_fast.bench.report import load

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

#: Of the providers those that could be the fastest, and plain PyTorch: all of them would take hours.
INFERENCE = (
    *("eager", "eager-channels-last", "inductor", "onnxruntime", "openvino"),
    *("effnet-fast", "effnet-fast-optimize"),
)
TRAINING = ("eager", "eager-channels-last", "compile", "effnet-fast")
#: Between asking a stage to stop and killing it.
GRACE = 20


class Stage(NamedTuple):
    """One command with its time box."""

    name: str
    seconds: int
    models: str  # arguments of `effnet-fast bench`; empty: the shape suites


STAGES = (
    Stage("latency of b0", 200, "b0@1 --dtype fp32 bf16"),
    Stage("latency of b4", 240, "b4@1 --dtype fp32 bf16"),
    Stage("training", 160, "b0@16 --mode train --dtype fp32 bf16 --rounds 2"),
    Stage("throughput of b0", 180, "b0@16 --dtype fp32 bf16 --rounds 2"),
    Stage("shapes", 140, ""),
    Stage("latency of b7", 160, "b7@1 --dtype fp32 bf16 --rounds 2"),
    Stage("throughput of b4", 120, "b4@4 --dtype fp32 bf16 --rounds 2"),
)


def command(stage: Stage, out: Path, box: int, rehearse: bool) -> list[str]:
    """What a stage runs; it should end by itself some time before its box does."""
    budget = str(max(1, box - GRACE))
    if not stage.models:
        tiny = ["--bench-batch", "1", "-k", "mbconv and stage7"] if rehearse else ["--bench-batch", "4"]
        return [
            *(sys.executable, "-m", "pytest", "benchmarks/test_mbconv.py", "benchmarks/test_depthwise.py"),
            *("benchmarks/test_pointwise.py", "benchmarks/test_squeeze_excite.py"),
            *("--benchmark-only", "--benchmark-columns=median,iqr,rounds", "-q", "-p", "no:cacheprovider"),
            *("--bench-models", "b0", "--bench-quick", "--bench-device", "cpu", "--bench-budget", budget),
            *("--bench-seconds", "0.01" if rehearse else "0.2", *tiny),
            *("--benchmark-json", str(out / "shapes.json")),
        ]
    found = default_providers("cpu", quick=rehearse)
    names = [name for name in (TRAINING if "--mode train" in stage.models else INFERENCE) if name in found]
    models = re.sub(r"@\d+", "@2", stage.models) if rehearse else stage.models
    tiny = ["--resolution", "32", "--seconds", "0.01", "--rounds", "1"] if rehearse else []
    return [
        *(sys.executable, "-m", "effnet_fast", "bench", *models.split(), "--providers", *names),
        *("--device", "cpu", "--budget", budget, "--out", str(out / "e2e.json"), "--append", *tiny),
    ]


def run(arguments: list[str], box: int) -> str:
    """Run a command for at most ``box`` seconds; returns ``ok``, ``failed`` or ``out of time``."""
    # A background job of a shell ignores Ctrl-C, and so would its children: theirs is made the default again.
    process = subprocess.Popen(
        arguments, cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    try:
        return "ok" if process.wait(box) == 0 else "failed"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    except KeyboardInterrupt:
        process.wait(GRACE)
        raise
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return "out of time"


def measure(out: Path, minutes: float, rehearse: bool) -> list[Path]:
    """Run all stages; returns the files with results."""
    longer = 60 * minutes / sum(stage.seconds for stage in STAGES)
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "e2e.json", out / "shapes.json"]
    for file in files:
        file.unlink(missing_ok=True)
    saved, log = 0, []
    try:
        for stage in STAGES:
            box, began = round(stage.seconds * longer) + saved, time.monotonic()
            print(f"== {stage.name} (at most {box} s)", flush=True)
            status = run(command(stage, out, box, rehearse), box)
            used = round(time.monotonic() - began)
            saved = max(0, box - used)
            log.append(f"{stage.name}: {status} after {used} of {box} s")
    except KeyboardInterrupt:
        log.append("interrupted; what was measured is kept")
    print("\n".join(log))
    return [file for file in files if file.exists()]


def slug(device_name: str) -> str:
    """A folder's name for a device."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def file_results(files: list[Path]) -> list[Path]:
    """Copy results to benchmarks/results/<device>/<date>-<name>.json."""
    written = []
    for file in files:
        (device,) = load([file])
        date = str(json.loads(file.read_text())["environment"]["date"])[:10]
        target = RESULTS / slug(device.name) / f"{date}-{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        written.append(target)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="measure into this folder, and publish nothing")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes; publishes nothing")
    parser.add_argument("--file", type=Path, nargs="+", help="file these results, and measure nothing")
    parser.add_argument("--minutes", type=float, default=20, help="for all stages together (default: 20)")
    arguments = parser.parse_args()
    publish = not (arguments.out or arguments.rehearse)
    out = arguments.out or ROOT / "build" / ("rehearsal" if arguments.rehearse else "bench")
    if arguments.file:
        publish, files = True, arguments.file
    else:
        busy = os.getloadavg()[0]
        if busy > 0.5:
            print(f"warning: the load average is {busy:.1f}: others are at work")
        files = measure(out, arguments.minutes, arguments.rehearse)
    if not files:
        print("nothing was measured")
        return 1
    page = out / "report.html"
    subprocess.run([sys.executable, "-m", "effnet_fast", "report", *files, "-o", page, "--text"], check=True)
    if publish:
        for path in file_results(files):
            print(f"wrote {path.relative_to(ROOT)}")
        subprocess.run([sys.executable, ROOT / "benchmarks" / "readme.py"], check=True)
        print("README.md and docs/figures are written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
