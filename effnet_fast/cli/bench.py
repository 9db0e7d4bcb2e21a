"""Time whole models: PyTorch in its several ways, this package, and other runtimes, each in a process of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..bench import results, sweep
from ..bench.load import CONSEQUENCE
from ..bench.providers import PROVIDERS, default_providers, is_ours, named
from ..bench.report.data import BUSY
from ..bench.targets import DTYPES, MODES
from ..errors import EffnetFastError
from ..system import ctrl_c, writing
from . import options
from .output import Output

HELP = "time models end to end against PyTorch and other runtimes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        default=[],
        help="b0 ... b7, torchvision:NAME, timm:NAME or package.module:factory; b4@1,64: with these batches",
    )
    parser.add_argument(
        "--models", nargs="+", default=[], dest="more_models", metavar="MODEL", help="the same (default: b0)"
    )
    parser.add_argument(
        "--batch",
        type=options.positive,
        nargs="+",
        default=[1],
        metavar="N",
        help="images of a call (default: 1)",
    )
    parser.add_argument(
        "--resolution",
        type=options.positive,
        nargs="+",
        default=[],
        metavar="PIXELS",
        help="default: each model's own",
    )
    for name, choices, default in (("dtype", DTYPES, "fp32"), ("mode", MODES, "infer")):
        parser.add_argument(
            *(f"--{name}", f"--{name}s"),
            action=options.Names,
            choices=choices,
            default=[default],
            metavar=name.upper(),
            help=f"some of {', '.join(choices)} (default: {default})",
        )
    parser.add_argument(
        "--providers",
        action=options.Names,
        metavar="NAME",
        help=f"some of {', '.join(PROVIDERS)}; effnet_fast: patched and, on the CPU, optimized",
    )
    parser.add_argument(
        "--rounds", type=options.positive, default=3, help="turns of each provider (default: 3)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing per turn (default: 1)")
    parser.add_argument("--budget", type=float, help="start nothing new after so many seconds")
    parser.add_argument(
        "--quick", action="store_true", help="short turns, and no provider that is slow to start"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="also write the JSON there, after each row"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="also write the rows there")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD.json",
        help="judge against an earlier file; exit code 1 if something is worse",
    )
    parser.add_argument("--append", action="store_true", help="keep the other rows that --out has")
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=True,
        default=False,
        metavar="FILE.json",
        help="print JSON and nothing else; with a file the same as --out",
    )
    options.add_device(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    device = options.device(arguments.device).type
    if isinstance(arguments.json, Path):
        if arguments.json.suffix != ".json" or arguments.out:
            raise EffnetFastError(
                f"bench: --json takes one file ending in .json, got {str(arguments.json)!r}"
            )
        arguments.out = arguments.json
    old = results.read(arguments.compare) if arguments.compare else None
    if arguments.seconds <= 0:
        raise EffnetFastError(f"bench: --seconds: expected a positive number, got {arguments.seconds}")
    if arguments.append and not arguments.out:
        raise EffnetFastError("bench: --append needs --out")
    providers = named(arguments.providers or default_providers(device, arguments.quick), device)
    models = [*arguments.models, *arguments.more_models] or ["b0"]
    jobs = sweep.make_jobs(models, arguments.mode, arguments.batch, arguments.resolution, arguments.dtype)
    seconds = min(arguments.seconds, 0.3) if arguments.quick else arguments.seconds
    earlier = results.read(arguments.out) if arguments.append and arguments.out.exists() else None
    work = sweep.Sweep(
        sweep.Plan(jobs, providers, device, arguments.rounds, seconds, arguments.budget),
        earlier["rows"] if earlier else [],
    )
    if earlier:
        # Later the load is that of the benchmarks themselves.
        work.data["environment"]["load_before"] = earlier["environment"].get("load_before")
    # A folder that cannot be written is told before the measurements, not after.
    for path in filter(None, (arguments.out, arguments.csv)):
        writing.check_file(path, "bench")
    interrupted = _run(work, arguments, output)
    _show(work.rows, output)
    _show_load(work.data["environment"], output)
    changes = results.compare(old["rows"], work.fresh) if old else []
    if old:
        _show_changes(changes, old["environment"], work.data["environment"], output)
    output.data({**work.data, **({"changes": [c._asdict() for c in changes]} if old else {})})
    if interrupted:
        kept = f"; {arguments.out} has what was measured" if arguments.out and work.fresh else ""
        print(
            f"effnet-fast bench: interrupted, {len(work.fresh)} of {len(jobs) * len(providers)} rows{kept}",
            file=sys.stderr,
        )
        return ctrl_c.EXIT_CODE
    return 1 if any(change.verdict == "worse" for change in changes) else 0


def _save(work: sweep.Sweep, arguments: argparse.Namespace) -> None:
    results.add_speedups(work.rows)
    if arguments.out:
        results.write(arguments.out, work.data)
    if arguments.csv:
        results.write_csv(arguments.csv, work.rows)


def _run(work: sweep.Sweep, arguments: argparse.Namespace, output: Output) -> bool:
    """Returns whether Ctrl-C ended it; what was measured by then is kept."""
    with output.remaining("measuring", work.remaining):
        try:
            with ctrl_c.raising():
                work.run(lambda row: _save(work, arguments))
        except KeyboardInterrupt:
            return True
        finally:
            # Before the first row an earlier file has more to tell.
            if work.fresh:
                _save(work, arguments)
    return False


#: Left out in this order where the line is too short.
MINOR = (("p20", "p80"), ("memory MB",), ("of roofline",))
COLUMNS = ("provider", "median ms", "p20", "p80", "images/s", "memory MB", "error", "speed-up", "of roofline")
LEGEND = (
    "*: effnet_fast's",
    "error: the largest difference from fp64 over the largest value; in training of the stem's weight gradient",
    "speed-up: over the fastest row without *",
    "of roofline: the least time at rates measured here over the time taken",
)


def _show(rows: list[results.Row], output: Output) -> None:
    """One table per job, what was not measured below it, and what the columns mean once."""
    for job in dict.fromkeys(map(results.job_of, rows)):
        model, mode, batch, resolution, dtype = job
        ours = [row for row in rows if results.job_of(row) == job]
        title = f"{model}, {mode}, batch {batch}, {resolution} x {resolution}, {dtype}"
        output.table(COLUMNS, [_cells(row) for row in results.measured(ours)], title, MINOR)
        for row in ours:
            if not row["median_ms"]:
                reason = f": {row['reason']}" if row.get("reason") else ""
                output.sentence(f"not measured: {row['provider']}, {row['status']}{reason}")
        output.line()
    if results.measured(rows):
        for line in LEGEND:
            output.sentence(line, 2)


def _cells(row: results.Row) -> tuple[str, ...]:
    return (
        row["provider"] + (" *" if is_ours(row["provider"]) else ""),
        *(f"{row[name]:.3f}" for name in ("median_ms", "p20_ms", "p80_ms")),
        f"{row['images_per_second']:.1f}",
        f"{row['peak_memory_mb']:.0f}",
        "" if row["max_error"] is None else f"{row['max_error']:.1e}",
        "" if row["speedup"] is None else f"{row['speedup']:.2f}",
        "" if row["roofline"] is None else f"{100 * row['roofline']:.0f} %",
    )


def _show_load(environment: dict[str, Any], output: Output) -> None:
    before, after = environment["load_before"], environment.get("load_after")
    output.line(f"load average: {before} before, {after} after, on {environment['cores']} cores")
    if before is not None and before > BUSY:
        output.sentence(f"others were at work on this machine: {CONSEQUENCE}")


def _show_changes(
    changes: list[results.Change], before: dict[str, Any], now: dict[str, Any], output: Output
) -> None:
    output.table(
        ("measurement", "old ms", "new ms", "new/old", "verdict"),
        [
            (
                " ".join(map(str, c.key)),
                f"{c.old_ms:.3f}",
                f"{c.new_ms:.3f}",
                f"{c.new_ms / c.old_ms:.2f}",
                c.verdict,
            )
            for c in changes
        ],
        "compared with the earlier file",
    )
    for name in ("device_name", "torch", "threads"):
        if before.get(name) != now.get(name):
            output.line(f"warning: {name} was {before.get(name)}, is {now.get(name)}")
    counts = {word: sum(c.verdict == word for c in changes) for word in ("better", "worse", "same")}
    output.line("verdict: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
