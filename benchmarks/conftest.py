"""Options of the suites, their parameters, and the one way a case is measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cases, providers, shapes
from effnet_fast.bench import memory, results, timing
from effnet_fast.bench.stats import summarize
from effnet_fast.bench.targets import DTYPES
from effnet_fast.errors import BackendError, EffnetFastError
from effnet_fast.models import list_models

#: Facts of the machine that every row repeats.
SHARED = ("device_name", "threads", "python", "torch", "triton", "effnet_fast", "revision", "copy_gb_per_s")

Clock = pytest.StashKey[timing.Clock]()
Facts = pytest.StashKey[dict[str, Any]]()
Deadline = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("effnet_fast benchmarks")
    group.addoption("--bench-device", default="auto", choices=("auto", "cpu", "cuda"))
    group.addoption("--bench-models", default="", help="comma-separated, default: b0 to b7")
    group.addoption("--bench-batch", type=int, default=0, help="default: 8 on the CPU, 64 on CUDA")
    group.addoption(
        "--bench-dtype", default="", choices=("", "fp32", "bf16", "fp16"), help="default: fp32, CUDA: bf16"
    )
    group.addoption("--bench-seconds", type=float, default=0.3, help="of timing for each provider and shape")
    group.addoption("--bench-budget", type=float, default=0.0, help="seconds; what is left then is skipped")
    group.addoption("--bench-quick", action="store_true", help="only providers that start at once")
    group.addoption(
        "--bench-providers", default="", help="comma-separated, default: all that this device has"
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--bench-device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    config.stash[Clock] = timing.Clock(torch.device(name))
    budget = config.getoption("--bench-budget")
    config.stash[Deadline] = time.monotonic() + budget if budget else float("inf")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def _device(config: pytest.Config) -> torch.device:
    return config.stash[Clock].device


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests with a ``provider`` and a ``shape`` run for every pair; the suite's ``KIND`` says which shapes."""
    if "provider" not in metafunc.fixturenames:
        return
    config = metafunc.config
    models = [name for name in config.getoption("--bench-models").split(",") if name] or list_models()
    chosen = [name for name in config.getoption("--bench-providers").split(",") if name]
    chosen = chosen or providers.names(_device(config), config.getoption("--bench-quick"))
    # The provider varies fastest, so that those compared run one after the other.
    metafunc.parametrize("provider", chosen)
    found = shapes.shapes(metafunc.module.KIND, models)
    metafunc.parametrize("shape", found, ids=[shape.name for shape in found])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # What pytest-benchmark then sees is the time the device measured.
        item.add_marker(pytest.mark.benchmark(timer=config.stash[Clock], disable_gc=True))
    order = {path: index for index, path in enumerate(dict.fromkeys(item.path for item in items))}
    # One shape's providers one after the other, files in the order they were named.
    items.sort(key=lambda item: (order[item.path], *_group(item)))


def _group(item: pytest.Item) -> tuple[str, str]:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    shape = parameters.get("shape")
    return item.name.split("[")[0] + str(parameters.get("mode", "")), shape.name if shape else ""


@pytest.fixture(scope="session")
def facts(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What every row carries: machine, versions, revision, and the copy bandwidth measured now."""
    device = _device(pytestconfig)
    found = results.facts(device.type)
    found["device_name"] = torch.cuda.get_device_name(device) if device.type == "cuda" else found["cpu"]
    pytestconfig.stash[Facts] = found
    found["copy_gb_per_s"] = round(timing.copy_bandwidth(device) / 1e9, 2)
    return found


@pytest.fixture(scope="session")
def truths() -> dict[Any, Any]:
    """The last case with its truth: providers of one case follow each other."""
    return {}


def _peak(step: providers.Step, device: torch.device) -> float | None:
    """Megabytes that a call holds at most beyond its input and weights; ``None`` where nobody counts."""
    if device.type == "cpu":
        # What was free but kept would hide what the call needs.
        memory.return_unused()
    if not memory.reset_peak(device):
        return None
    before = memory.used_mb(device)
    outputs = step()
    peak = memory.peak_mb(device) - before
    del outputs
    return round(peak, 3)


@pytest.fixture
def measure(
    benchmark: Any, facts: dict[str, Any], truths: dict[Any, Any], pytestconfig: pytest.Config
) -> Callable[..., None]:
    """Checks a provider's values, then times it: ``measure(make_case, shape, mode, provider)``."""
    clock = pytestconfig.stash[Clock]
    device = clock.device
    batch = pytestconfig.getoption("--bench-batch") or (64 if device.type == "cuda" else 8)
    dtype = pytestconfig.getoption("--bench-dtype") or ("bf16" if device.type == "cuda" else "fp32")

    def run(make: Callable[..., cases.Case], shape: shapes.Shape, mode: str, provider: str) -> None:
        if time.monotonic() > pytestconfig.stash[Deadline]:
            pytest.skip("the time budget was used up")
        key = make.__name__, shape, mode
        if key not in truths:
            truths.clear()
            torch.manual_seed(0)
            truths[key] = providers.Truth(make(shape, mode, batch, device, DTYPES[dtype][0]))
        truth = truths[key]
        try:
            step = providers.step(provider, truth.case)
            truth.check(step())
        except (BackendError, EffnetFastError) as error:
            pytest.skip(str(error))
        one = timing.warm_up(step, clock)
        # What a graph replays it allocated when it was captured.
        peak = None if provider.endswith("cuda-graph") else _peak(step, device)
        seconds = pytestconfig.getoption("--bench-seconds")
        benchmark.group = f"{make.__name__} {mode} {shape.name}"
        benchmark.pedantic(clock.run, args=(step,), rounds=timing.rounds_for(one, seconds))
        if benchmark.stats is None:
            return
        spread = summarize(benchmark.stats.stats.data)
        speed = truth.case.bytes / spread.median / 1e9
        kind = dtype if make is not cases.squeeze_excite else "fp32"
        rates = facts.setdefault("matmul_tflops", {})
        if kind not in rates:
            rates[kind] = round(timing.matmul_rate(device, DTYPES[kind][0]) / 1e12, 4)
        benchmark.extra_info.update(
            op=make.__name__,
            shape=shape.name,
            mode=mode,
            provider=provider,
            batch=batch,
            dtype=kind,
            median_ms=spread.median * 1e3,
            p20_ms=spread.p20 * 1e3,
            p80_ms=spread.p80 * 1e3,
            bytes=int(truth.case.bytes),
            gb_per_s=round(speed, 2),
            copy_fraction=round(speed / facts["copy_gb_per_s"], 4),
            flops=int(truth.case.flops),
            peak_memory_mb=peak,
            matmul_gflop_per_s=rates[kind] * 1e3,
            **{name: facts.get(name) for name in SHARED},
        )

    return run


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Single timings are left out: the median and the spread are what is kept."""
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
    output_json["environment"] = config.stash.get(Facts, None) or results.facts(_device(config).type)
