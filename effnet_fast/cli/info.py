"""What is installed, which kernels can run here and why others cannot: a report to paste into a bug report."""

from __future__ import annotations

import argparse
from typing import Any

from ..system import environment
from .output import Output

HELP = "environment report: versions, backends with reasons, what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-devices", action="store_true", help="do not initialise CUDA")


def run(arguments: argparse.Namespace, output: Output) -> int:
    report = environment.collect(with_devices=not arguments.no_devices)
    output.data(report)
    if not output.as_json:
        _show(report, output)
    return 0


def _show(report: dict[str, Any], output: Output) -> None:
    output.heading(f"effnet-fast {report['effnet_fast']['version']} ({report['effnet_fast']['path']})")
    _facts(output, "system", report["system"])
    _facts(
        output, "packages", {name: version or "not installed" for name, version in report["packages"].items()}
    )
    if "devices" in report:
        _facts(output, "devices", _devices(report["devices"]))
    _facts(output, "native libraries", _native(report["native"]))
    _facts(output, "build tools", report["tools"])
    _facts(output, "environment variables", report["environment"] or {"none": "of those that matter is set"})
    for device, table in report["backends"].items():
        _backends(output, device, table)
    if not report["missing"]:
        output.line("\nnothing is missing")
        return
    output.line()
    output.heading("missing")
    for item in report["missing"]:
        output.sentence(f"  {item['what']}: {item['reason']}", 4)
        if item["command"]:
            output.line(f"    add it with: {item['command']}")


def _facts(output: Output, title: str, facts: dict[str, Any]) -> None:
    output.line()
    output.heading(title)
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = name.replace("_", " ").strip() if title == "system" else name
        output.sentence(f"  {shown:<{width}}  {_text(value)}", width + 4)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            name if on is True else f"{name} {_text(on)}" for name, on in value.items() if on is not False
        )
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)


def _devices(devices: dict[str, Any]) -> dict[str, Any]:
    found = {"torch's CUDA": devices["torch_cuda"] or "none: this torch is built for CPUs only"}
    if not devices["list"]:
        found["GPU"] = "none"
    for index, gpu in enumerate(devices["list"]):
        found[f"GPU {index}"] = (
            f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gb']} GB, "
            f"{gpu['multiprocessors']} multiprocessors"
        )
    return found


def _native(native: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in native.items():
        if isinstance(value, dict) and "loaded" in value:
            details = {k: v for k, v in value.items() if k not in ("loaded", "path", "reason", "fix") and v}
            state = f"loaded, {value['path']}" if value["loaded"] else f"not loaded: {value['reason']}"
            facts[name] = f"{state} ({_text(details)})" if details else state
        else:
            facts[name] = value
    return facts


def _backends(output: Output, device: str, table: dict[str, dict[str, str]]) -> None:
    """Every op's backends as yes and no, and below each distinct reason once."""
    names = list(dict.fromkeys(name for answers in table.values() for name in answers))
    reasons: dict[str, dict[str, None]] = {}
    for op, answers in table.items():
        for name, answer in answers.items():
            if answer != "ok":
                # The table says which op; a reason that ends in its name would come once for each.
                common = (
                    answer.removesuffix(f"no {op}") + "no such op" if answer.endswith(f"no {op}") else answer
                )
                reasons.setdefault(name, {})[common] = None
    rows = [
        (op, *("-" if name not in answers else "yes" if answers[name] == "ok" else "no" for name in names))
        for op, answers in table.items()
    ]
    output.line()
    output.table(("op", *names), rows, f"backends for fp32 on {device} (- : has no such op)")
    for name, texts in reasons.items():
        for text in texts:
            output.sentence(f"  {name}: {text}", 4)
