"""Measure every candidate tile configuration of the Triton kernels on this GPU and keep the fastest for later runs."""

from __future__ import annotations

import argparse
import json

import torch

from ..models import list_models
from .output import Output

HELP = "find the fastest Triton configurations for this GPU"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="b0", choices=list_models(), help="whose block shapes to measure")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument("--device", default="cuda", help="default: cuda")


def run(arguments: argparse.Namespace, output: Output) -> int:
    # Triton is not needed for the other subcommands.
    from ..bench.tuner import tune

    path = tune(arguments.model, DTYPES[arguments.dtype], arguments.batch, arguments.device, output.line)
    output.line(f"stored in {path}")
    output.data({"file": str(path), "configurations": json.loads(path.read_text())})
    return 0
