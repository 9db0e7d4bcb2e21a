"""The B0 to B7 table, or the stages of one model. Costs are counted, for one image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..models import ModelSummary, list_models, summarize
from .output import Output

HELP = "table of the models, or of one model's stages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="b0 ... b7: show its stages")
    parser.add_argument("--resolution", type=int, help="count at this image size instead of the model's own")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.model is not None:
        summary = summarize(arguments.model, arguments.resolution)
        output.data(summary.as_dict())
        _show_stages(summary, output)
        return 0
    summaries = [summarize(name, arguments.resolution) for name in list_models()]
    output.data([summary.as_dict() for summary in summaries])
    output.table(
        ("model", "resolution", "blocks", "features", "dropout", "parameters", "multiply-adds"),
        [
            (
                s.name,
                str(s.resolution),
                str(sum(stage.repeats for stage in s.stages if stage.name.startswith("stage"))),
                str(s.stages[-1].in_channels),
                f"{s.dropout:g}",
                f"{s.parameters / 1e6:.2f} M",
                f"{s.multiply_adds / 1e9:.2f} G",
            )
            for s in summaries
        ],
        minor=(("dropout", "features"),),
    )
    _show_all_stages(summaries, output)
    output.line("sizes and costs of one model's stages: effnet-fast models b3")
    return 0


def _show_all_stages(summaries: Sequence[ModelSummary], output: Output) -> None:
    """Kernel, expansion and stride are the same in every model, depth and width are what scaling changes."""
    rows = []
    for stages in zip(*(summary.stages for summary in summaries), strict=True):
        first = stages[0]
        if first.name.startswith("stage"):
            shared = (
                f"{first.kernel_size}x{first.kernel_size}",
                f"{first.expand_ratio:g}",
                str(first.stride),
            )
            rows.append((first.name, *shared, *(f"{s.repeats} x {s.out_channels}" for s in stages)))
    columns = ("stage", "kernel", "expand", "stride", *(summary.name for summary in summaries))
    output.table(columns, rows, "repeats x output channels")


def _show_stages(summary: ModelSummary, output: Output) -> None:
    columns = ("stage", "kernel", "expand", "stride", "repeats", "channels", "size", "params", "mult-adds")
    rows = [
        (
            s.name,
            f"{s.kernel_size}x{s.kernel_size}",
            f"{s.expand_ratio:g}" if s.name.startswith("stage") else "",
            *map(str, (s.stride, s.repeats, s.out_channels, s.output_size)),
            f"{s.parameters / 1e6:.3f} M",
            f"{s.multiply_adds / 1e6:.1f} M",
        )
        for s in summary.stages
    ]
    output.table(columns, rows, f"{summary.name} at {summary.resolution} x {summary.resolution}")
    output.line("channels and size are those of the output")
    output.sentence(
        f"{summary.parameters / 1e6:.2f} M parameters, {summary.multiply_adds / 1e9:.2f} G multiply-adds an image"
    )
