"""Writes what README.md and docs/operations.md say of speed from benchmarks/results/<device>/*.json, and the figures.

python benchmarks/readme.py            # rewrite both and docs/figures/
python benchmarks/readme.py --check    # exit code 1 if either says anything else than the results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from effnet_fast.bench import results
from effnet_fast.bench.load import CONSEQUENCE
from effnet_fast.bench.providers import is_ours
from effnet_fast.bench.report import Device, Duel, duels, figures, load
from effnet_fast.bench.report.data import busy, group, job, shape_job
from effnet_fast.bench.stats import geometric_mean

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- performance: begin (benchmarks/readme.py) -->", "<!-- performance: end -->"


def section(folder: Path) -> str:
    """Whole models, for README.md."""
    devices = _devices(folder)
    parts = [_models(name, device) for name, device in devices if duels(device.models, job)]
    if not any(facts.get("device") == "cuda" for _, device in devices for facts in device.environments):
        parts.append("Not measured on a GPU yet: nothing is claimed for one.\n")
    return "\n".join(parts)


def operations(folder: Path) -> str:
    """Single operations, for docs/operations.md."""
    return "\n".join(
        _operations(name, device) for name, device in _devices(folder) if duels(device.shapes, shape_job)
    )


#: file -> what stands between its markers.
SECTIONS: dict[str, Callable[[Path], str]] = {"README.md": section, "docs/operations.md": operations}


def _devices(results_folder: Path) -> list[tuple[str, Device]]:
    return [
        (path.name, device)
        for path in _folders(results_folder)
        for device in load(sorted(path.glob("*.json")))
    ]


def _folders(results_folder: Path) -> list[Path]:
    return sorted(path for path in results_folder.glob("*") if path.is_dir())


def _conditions(device: Device) -> list[str]:
    """The device, the software, the dates, and whether the machine was busy, in a line or two."""
    facts = device.environments[-1]
    dates = sorted({str(entry["date"])[:10] for entry in device.environments})
    isa = f" ({facts['isa']})" if facts["device"] == "cpu" and facts.get("isa") else ""
    lines = [f"**{device.name}**{isa}, PyTorch {facts['torch']}, measured {' and '.join(dates)}.", ""]
    if (load_average := busy(device)) is not None:
        lines += [
            f"Others were at work on the machine (load average up to {load_average}): {CONSEQUENCE}.",
            "",
        ]
    return lines


def _models(folder: str, device: Device) -> str:
    found = duels(device.models, job)
    return "\n".join(
        [
            *_conditions(device),
            *_figure(folder, "models", "docs/figures"),
            "| model | images/s | by | fastest baseline, images/s | speed-up | over eager |",
            "|---|--:|---|--:|--:|--:|",
            *_rows(device, found),
            "",
            losses([duel.speedup for duel in found]),
            *failures(device, [duel.job for duel in found]),
            "",
        ]
    )


def _rows(device: Device, found: list[Duel]) -> list[str]:
    eager = _eager(device)
    rows = []
    for duel in found:
        model, mode, batch, resolution, dtype = duel.job
        ours, other = duel.ours, duel.baseline
        over_eager = f"{eager[duel.job] / ours['median_ms']:.2f}x" if duel.job in eager else ""
        rows.append(
            f"| {model} {mode}, batch {batch}, {resolution} px, {dtype} | {ours['images_per_second']:,.1f} "
            f"| {ours['provider']} | {other['images_per_second']:,.1f} ({other['provider']}) | {duel.speedup:.2f}x "
            f"| {over_eager} |"
        )
    return rows


def _operations(folder: str, device: Device) -> str:
    return "\n".join(
        [
            *_conditions(device),
            "| single operations | shapes | speed-up over the fastest baseline (geometric mean) | slowest | losses |",
            "|---|--:|--:|--:|--:|",
            *_shapes(device),
            "",
            *_figure(folder, "shapes", "figures"),
        ]
    )


def _figure(folder: str, name: str, figures_from_here: str) -> list[str]:
    if not (ROOT / "docs" / "figures" / folder / f"{name}.png").exists():
        return []
    return [f"![{name}]({figures_from_here}/{folder}/{name}.png)", ""]


def failures(device: Device, jobs: list[tuple[object, ...]]) -> list[str]:
    """A line for every baseline that is missing from a comparison because it failed or its time ran out."""
    return [
        f"Not in the comparison: {row['provider']} for {row['model']} {row['mode']}, batch {row['batch']}, {row['dtype']} "
        f"({row['status']}: {row['reason']})."
        for row in device.models
        if row["status"] not in ("ok", "unavailable") and not is_ours(row["provider"]) and job(row) in jobs
    ]


def losses(speeds: list[float]) -> str:
    """How many of the speed-ups are losses, in a sentence."""
    lost = sum(speed < 1 for speed in speeds)
    if not lost:
        return f"Faster than the fastest baseline in all {len(speeds)} cases."
    return (
        f"Slower than the fastest baseline in {lost} of {len(speeds)} cases, at worst {min(speeds):.2f}x; "
        f"geometric mean {geometric_mean(speeds):.2f}x."
    )


def _eager(device: Device) -> dict[tuple[object, ...], float]:
    """Milliseconds of the faster of the two eager layouts."""
    rows = [row for row in results.measured(device.models) if row["provider"].startswith("eager")]
    return {key: min(row["median_ms"] for row in members) for key, members in group(rows, job).items()}


def _shapes(device: Device) -> list[str]:
    kinds: dict[tuple[object, ...], list[float]] = {}
    for duel in duels(device.shapes, shape_job):
        kinds.setdefault(duel.job[:4], []).append(duel.speedup)
    return [
        f"| {op} {mode}, batch {batch}, {dtype} | {len(speeds)} | {geometric_mean(speeds):.2f}x "
        f"| {min(speeds):.2f}x | {sum(speed < 1 for speed in speeds)} |"
        for (op, mode, batch, dtype), speeds in kinds.items()
    ]


def replaced(text: str, body: str) -> str:
    """``text`` with everything between the markers replaced."""
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"the file lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{body}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    folder = ROOT / "benchmarks" / "results"
    if not arguments.check:
        for name, device in _devices(folder):
            figures.save(device, ROOT / "docs" / "figures" / name)
    stale = 0
    for name, make in SECTIONS.items():
        path = ROOT / name
        text = path.read_text()
        wanted = replaced(text, make(folder))
        stale += wanted != text
        if not arguments.check:
            path.write_text(wanted)
    return int(arguments.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
