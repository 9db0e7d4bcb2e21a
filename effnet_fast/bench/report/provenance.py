"""Where the page's numbers come from: who else was at work, the commands that measure them again, the environment."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from ...models.config import VARIANTS
from .. import results
from ..load import CONSEQUENCE
from .data import Device, Row, busy, group
from .markup import table

#: Facts of an environment as a reader meets them, in this order; the rest follow under their own names.
NAMES = {
    "date": "measured",
    "revision": "source revision",
    "effnet_fast": "effnet_fast",
    "torch": "PyTorch",
    "triton": "Triton",
    "python": "Python",
    "device_name": "device",
    "isa": "instruction set of PyTorch",
    "cores": "cores",
    "threads": "threads",
    "driver": "NVIDIA driver",
    "load_before": "load average before",
    "load_after": "load average after",
    "copy_gb_per_s": "copy bandwidth, GB/s",
    "matmul_tflops": "matrix products, TFLOP/s",
}
#: Said elsewhere, or twice.
LEFT_OUT = {"device", "cpu", "file", "command"}


def banner(device: Device) -> str:
    """A warning where the machine had other work, or nothing."""
    load_average = busy(device)
    if load_average is None:
        return ""
    return (
        f'<p class="banner">Others were at work on this machine: a load average of {load_average:g} before a '
        f"benchmark began. {escape(CONSEQUENCE)}; measure again on one.</p>"
    )


def reproduce(device: Device) -> str:
    """The commands that measure this device's rows again."""
    commands = _model_commands(device.models) + _shape_commands(device)
    if not commands:
        return ""
    lines = "\n".join(escape(command) for command in commands)
    revisions = sorted({str(facts["revision"]) for facts in device.environments if facts.get("revision")})
    at = f" at {' and '.join(revisions)}" if revisions else ""
    return (
        f'<h3>Measure it again</h3><p class="muted">In a checkout{escape(at)}, on an idle machine:</p>'
        f'<pre class="scroll">{lines}</pre>'
    )


def _model_commands(rows: Sequence[Row]) -> list[str]:
    commands = []
    for (mode, dtype, size), members in group(
        rows, lambda row: (row["mode"], row["dtype"], _unusual_size(row))
    ).items():
        models = [
            f"{model}@{','.join(map(str, dict.fromkeys(row['batch'] for row in same)))}"
            for model, same in group(members, lambda row: row["model"]).items()
        ]
        options = ["--mode", mode, "--dtype", dtype, *(["--resolution", str(size)] if size else [])]
        commands.append(shlex.join(["effnet-fast", "bench", *models, *options]))
    return commands


def _unusual_size(row: Row) -> int | None:
    """The resolution of a row, unless it is the one that B0 to B7 have by themselves."""
    # Names of other models are not resolved: that would import what a file of results names.
    usual = VARIANTS[row["model"]].resolution if row["model"] in VARIANTS else None
    return None if row["resolution"] == usual else int(row["resolution"])


def _shape_commands(device: Device) -> list[str]:
    kind = device.environments[-1].get("device", "cpu")
    commands = []
    for batch, dtype in group(results.measured(device.shapes), lambda row: (row["batch"], row["dtype"])):
        options = ["--bench-batch", str(batch), "--bench-dtype", dtype, "--bench-device", str(kind)]
        commands.append(shlex.join(["pytest", "benchmarks", "--benchmark-only", *options]))
    return commands


def environment(environments: Sequence[Row]) -> str:
    """A column a file, a row a fact; what is the same everywhere stands once."""
    keys = [key for key in NAMES if any(facts.get(key) is not None for facts in environments)]
    keys += sorted({key for facts in environments for key in facts} - set(NAMES) - LEFT_OUT)
    rows = []
    for key in keys:
        values = [_readable(facts.get(key)) for facts in environments]
        if any(values):
            rows.append([escape(NAMES.get(key, key)), *map(escape, values)])
    files = [str(facts["file"]) for facts in environments]
    return f"<h3>Environment</h3>{table(['', *files], rows, range(len(files) + 1))}"


def _readable(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_readable, value))
    # Dates without seconds' fractions and the T of ISO 8601.
    text = str(value)
    return text[:16].replace("T", " ") if text[10:11] == "T" and text[:4].isdigit() else text
