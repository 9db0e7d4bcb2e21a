"""Jobs that launch what the stages of scripts/gpu.sh launch."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any
from unittest import mock

import torch

from . import networks
from .build import ROOT

SIZES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


def steps(mode: str, models: str, dtype: str) -> float:
    """CPU seconds of the first call of networks, "b0@256,1 b4@64", compiling included."""
    seconds = 0.0
    for entry in models.split():
        name, _, batches = entry.partition("@")
        for batch in batches.split(","):
            # As the benchmarks: BatchNorm stays in fp32, training is under autocast.
            kind = "autocast" if mode == "training" else dtype
            call, model = networks.made(mode, name, "effnet_fast", kind, int(batch), SIZES[name])
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.float()
            began = _cpu_time()
            call()
            seconds += _cpu_time() - began
    return seconds


def script(name: str, *arguments: str) -> float:
    """CPU seconds of a script of benchmarks/, compiling included. What it asks of values, it is told to be so."""
    sys.path.insert(0, str(ROOT))
    module: Any = importlib.import_module(f"benchmarks.{name}")
    began = _cpu_time()
    with (
        mock.patch.object(sys, "argv", [name, *arguments]),
        mock.patch.object(torch.Tensor, "__bool__", lambda _: True),
    ):
        module.main()
    return _cpu_time() - began


def _cpu_time() -> float:
    """Of this process and of the compilers it has started and waited for."""
    return sum(os.times()[:4])
