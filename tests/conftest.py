"""What every test runs under: seeded, no EFFNET_FAST_* choices from outside, uninitialised memory is NaN."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# PyTorch is the oracle, and its bfloat16 convolutions by AMX (torch 2.14, oneDNN) read beside the images where stride and
# padding are uneven. oneDNN asks for this when it first computes; the package's own AMX kernels do not.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")

import torch

# Keeps constants that it makes when it is imported: they must not be made of poisoned memory.
import torch._dynamo
from torch.utils._device import _device_constructors

# Not choices of behaviour: to test while csrc/ is being edited, and to rehearse GPU tests on the CPU.
KEPT = ("EFFNET_FAST_ALLOW_STALE", "EFFNET_FAST_TEST_DEVICE")

for variable in [name for name in os.environ if name.startswith("EFFNET_FAST_") and name not in KEPT]:
    del os.environ[variable]

SEED = 20190528

#: effnet_fast.backend.native.ISAS, which is not imported here: some tests choose what the package sees when it is imported.
ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "amx")

# `with torch.device(...)` remembers the constructors of its first use; these must be torch's own, not poisoned ones.
_device_constructors()


@pytest.fixture(autouse=True)
def _compiler_forgets() -> Iterator[None]:
    """The compiler keeps eight versions of a function; those of other tests must not count."""
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test draws the same random numbers, whichever tests ran before it."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    try:
        import numpy
    except ImportError:
        pass
    else:
        numpy.random.seed(SEED)  # noqa: NPY002 (the global generator is what libraries draw from)
    return SEED


@pytest.fixture(autouse=True)
def no_image_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests' images would be left to PyTorch's modules, but what is tested is the package; test_small_images.py overrides this."""
    # Not imported here, as above.
    small_images = sys.modules.get("effnet_fast.nn.small_images")
    if small_images is not None:
        monkeypatch.setattr(small_images, "SMALL_BLOCK", 0)
        monkeypatch.setattr(small_images, "SMALL_LAYER", 0)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on every instruction set of the CPU kernels; skipped where the processor or the build lacks it."""
    from effnet_fast.backend import native

    assert native.ISAS == ISAS
    number = ISAS.index(request.param)
    if native.ops().cpu_isa(number) != number:
        native.ops().cpu_isa(len(ISAS) - 1)
        pytest.skip(f"no {request.param} here")
    yield request.param
    native.ops().cpu_isa(len(ISAS) - 1)


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on native code, where it is built, and on PyTorch's operations."""
    from effnet_fast import use_backend
    from effnet_fast.backend import native

    ok, reason = native.available("_ops")
    if request.param == "cpu" and not ok:
        pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def reference() -> Iterator[None]:
    """Runs a test on PyTorch's operations."""
    from effnet_fast import use_backend

    with use_backend("reference"):
        yield


def _poisoned(allocate: Callable[..., Any]) -> Callable[..., Any]:
    def allocate_nan(*args: Any, **kwargs: Any) -> Any:
        out = allocate(*args, **kwargs)
        # Traced code keeps the plain allocation; fake and meta tensors have no memory.
        if torch.compiler.is_compiling() or type(out) is not torch.Tensor or out.device.type == "meta":
            return out
        if out.is_floating_point():
            with torch.no_grad():
                out.fill_(float("nan"))
        return out

    return allocate_nan


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floating-point memory from torch.empty and its relatives holds NaN: what a kernel forgets to write shows.

    What native code allocates by itself is poisoned by :func:`poisoned_native_memory`.
    """
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))


@pytest.fixture
def poisoned_native_memory() -> Iterator[None]:
    """Also poisons what C++ allocates, through torch's own switch.

    Opt-in, because the switch works in deterministic mode only, which chooses other algorithms for a few ops.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds", type=float, help="share this time between the property-based tests (make fuzz)"
    )
    parser.addoption(
        "--fuzz-cases", type=int, help="at most so many cases of each property-based test (make sanitize)"
    )
    parser.addoption("--full", action="store_true", help="also the tests that take hours (make test-full)")


fuzz_tests = pytest.StashKey[int]()
fuzz_cases = pytest.StashKey[list[tuple[str, int]]]()


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """``fuzz(check, cases, count)``: a property-based test; see tests/support/fuzzing.py."""
    from fuzzing import Fuzzer

    config = request.config
    seconds = config.getoption("--fuzz-seconds")
    fuzzer = Fuzzer(
        None if seconds is None else seconds / config.stash[fuzz_tests], config.getoption("--fuzz-cases")
    )
    yield fuzzer
    config.stash.setdefault(fuzz_cases, []).append((request.node.name, fuzzer.cases))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    config.stash[fuzz_tests] = sum("fuzz" in getattr(item, "fixturenames", ()) for item in items)
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests and not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        config.stash[skipped_gpu_tests] = len(gpu_tests)


skipped_gpu_tests = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    fuzzed = config.stash.get(fuzz_cases, [])
    if fuzzed:
        terminalreporter.write_line(
            f"{sum(n for _, n in fuzzed)} cases in {len(fuzzed)} property-based tests"
        )
        if config.getoption("--fuzz-seconds") is not None:
            for name, cases in fuzzed:
                terminalreporter.write_line(f"{cases:8d} {name}")
    count = config.stash.get(skipped_gpu_tests, 0)
    if count:
        terminalreporter.write_line(f"{count} gpu tests skipped: no CUDA device on this machine", yellow=True)
