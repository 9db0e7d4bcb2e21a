"""Jobs that launch what the stages of scripts/gpu.sh launch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

import pytest
import torch

import effnet_fast.tolerance
from effnet_fast.bench import providers, targets

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


def compile_steps(models: str, dtype: str, *names: str) -> float:
    """CPU seconds of the first call of networks, "b0@256", by the benchmark's providers of these names."""
    from torch._inductor import config

    baseline.install()
    # The convolutions that stand in for cuDNN's choose other layouts than Inductor expects without cuDNN.
    config.size_asserts = False
    began = _cpu_time()
    for entry in models.split():
        name, _, batch = entry.partition("@")
        job = targets.Job(name, "infer", int(batch), SIZES[name], dtype)
        device = torch.device("cuda")
        for provider in names:
            model = targets.stock_model(job, device)
            providers.PROVIDERS[provider](model, targets.images(job, device), job).step()
            torch.compiler.reset()
    return _cpu_time() - began


def tests(*arguments: str) -> float:
    """CPU seconds of pytest, compiling included. A test that reads values off the device fails; what it launched is compiled."""
    baseline.install()
    # Modules as pytest has them: this folder's own tests are not among those that run.
    before = list(sys.path)
    began = _cpu_time()
    try:
        with (
            _agreeing(),
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            # Others print the arguments of what fails: tensors of gigabytes, element by element.
            options = [
                "-q",
                "-p",
                "no:cacheprovider",
                "--tb=native",
                "--assert=plain",
                "--rootdir",
                str(ROOT),
            ]
            pytest.main([*options, *arguments], plugins=[_Returning()])
    finally:
        sys.path[:] = before
    return _cpu_time() - began


class _Returning:
    """After every test PyTorch gives its cached memory back: what was copied to the device is this machine's memory."""

    @staticmethod
    def pytest_runtest_teardown() -> None:
        torch.cuda.empty_cache()


def script(name: str, *arguments: str) -> float:
    """CPU seconds of a script of benchmarks/, compiling included."""
    with _agreeing():
        return _main(_imported(name), *arguments)


@contextmanager
def _agreeing() -> Iterator[None]:
    """Within the block what is asked of values is told to be so: nothing computes them."""
    with (
        mock.patch.object(torch.Tensor, "__bool__", return_value=True),
        mock.patch.object(torch, "equal", return_value=True),
        mock.patch.object(torch.testing, "assert_close"),
        mock.patch.object(effnet_fast.tolerance, "error", return_value=0.0),
        mock.patch.object(effnet_fast.tolerance, "allowed", return_value=1.0),
    ):
        yield


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
