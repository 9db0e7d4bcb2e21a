"""Jobs that launch what the stages of scripts/gpu.sh launch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from . import baseline, networks
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
    with mock.patch.object(torch.Tensor, "__bool__", return_value=True):
        return _main(_imported(name), *arguments)


def profile(*arguments: str) -> float:
    """CPU seconds of benchmarks/profile_block.py where every step runs once: there are no times to profile."""
    module = _imported("profile_block")

    def kernels(step: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
        step()
        return []

    with mock.patch.object(module, "kernels", kernels):
        return _main(module, *arguments)


def _imported(name: str) -> Any:
    baseline.install()
    sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")


def _main(module: Any, *arguments: str) -> float:
    began = _cpu_time()
    with mock.patch.object(sys, "argv", [module.__name__, *arguments]):
        module.main()
    return _cpu_time() - began


def _cpu_time() -> float:
    """Of this process and of the compilers it has started and waited for."""
    return sum(os.times()[:4])
