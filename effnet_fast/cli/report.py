"""Draw what `effnet-fast bench` and the shape benchmarks measured as one self-contained page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bench import report
from ..bench.report.data import job
from ..bench.report.page import job_name
from ..system import writing
from .output import Output

HELP = "draw benchmark results as a page, figures or a table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", type=Path, nargs="+", help="JSON of `effnet-fast bench` or of `pytest benchmarks`"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.html", help="write the page there")
    parser.add_argument(
        "--png", type=Path, metavar="FOLDER", help="write the figures there (needs matplotlib)"
    )
    parser.add_argument(
        "--text", action="store_true", help="print the summary, the default without -o and --png"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.output:
        writing.check_file(arguments.output, "report")
    if arguments.png:
        writing.check_folder(arguments.png, "report")
    devices = report.load(arguments.files)
    written = []
    if arguments.output:
        with writing.replacing(arguments.output, "report") as file:
            file.write(report.render(devices))
        written.append(arguments.output)
    if arguments.png:
        # matplotlib is an optional package.
        from ..bench.report import figures

        several = len(devices) > 1
        with writing.telling(arguments.png, "report"):
            for index, device in enumerate(devices):
                folder = arguments.png / f"device{index}" if several else arguments.png
                written += figures.save(device, folder)
    if arguments.text or not written:
        _show(devices, output)
    for path in written:
        output.line(f"wrote {path}")
    output.data({"written": [str(path) for path in written], "devices": [device.name for device in devices]})
    return 0


COLUMNS = (
    *("job", "speed-up", "ours, images/s", "baseline, images/s"),
    *("fastest baseline", "fastest of ours"),
)
#: Left out in this order where the line is too short.
MINOR = (("fastest of ours",), ("fastest baseline",))


def _show(devices: list[report.Device], output: Output) -> None:
    for device in devices:
        rows = [
            (
                job_name(duel.job),
                f"{duel.speedup:.2f}",
                f"{duel.ours['images_per_second']:.1f}",
                f"{duel.baseline['images_per_second']:.1f}",
                duel.baseline["provider"],
                duel.ours["provider"],
            )
            for duel in report.duels(device.models, job)
        ]
        output.table(COLUMNS, rows, device.name, MINOR)
