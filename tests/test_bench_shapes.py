"""The shape suites: which shapes, what a case counts, who computes it, the check before the timing, the budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effnet_fast.bench import blocks
from effnet_fast.models import list_models

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the folder benchmarks, which is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cases, providers, shapes

    return SimpleNamespace(cases=cases, providers=providers, shapes=shapes)


def test_every_shape_once(suite: SimpleNamespace) -> None:
    for kind in ("depthwise", "pointwise", "squeeze_excite", "mbconv"):
        found = suite.shapes.shapes(kind)
        assert len({shape.name for shape in found}) == len(found)
    # All depthwise shapes of all models are there, each once.
    wanted = {
        (b.channels, b.size, b.kernel_size, b.stride) for n in list_models() for b in blocks.network(n).blocks
    }
    found = [(s.in_channels, s.size, s.kernel_size, s.stride) for s in suite.shapes.shapes("depthwise")]
    assert len(found) == len(set(found)) and set(found) == wanted


def _shape(suite: SimpleNamespace, kind: str, name: str) -> Any:
    return next(shape for shape in suite.shapes.shapes(kind, ["b0"]) if shape.name == name)


@pytest.mark.parametrize(("mode", "passes"), [("infer", 1), ("train", 3)])
def test_operations_and_bytes_by_hand(suite: SimpleNamespace, mode: str, passes: int) -> None:
    def make(op: str, kind: str, name: str) -> Any:
        return getattr(suite.cases, op)(_shape(suite, kind, name), mode, 2, CPU, torch.float32)

    name = "b0-stage7-k3s1"
    e, p, x = 1152 * 49, 320 * 49, 192 * 49
    case = make("depthwise", "depthwise", name)
    assert case.flops == passes * 2 * 2 * 9 * e
    assert case.bytes == 4 * ((2 * 2 * e + 9 * 1152) if mode == "infer" else (2 * 5 * e + 3 * 9 * 1152))
    case = make("pointwise", "pointwise", f"{name}-project")
    assert case.flops == passes * 2 * 2 * 1152 * p
    case = make("squeeze_excite", "squeeze_excite", "b0-stage6-k5s1-res-se")
    assert case.flops == passes * 2 * 2 * 2 * 1152 * 48
    case = make("mbconv", "mbconv", name)
    assert case.flops == passes * 2 * 2 * (192 * e + 9 * e + 1152 * p)
    if mode == "infer":
        parameters = 192 * 1152 + 9 * 1152 + 1152 * 320 + 2 * 1152 * 48 + 48 + 1152
        assert case.bytes == 4 * (2 * (x + e + 2 * e + 2 * 1152 + e + p) + parameters)


def test_compiled_providers_compile_every_shape(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, real = [], torch.compile

    def counting(call: Any, **options: Any) -> Any:
        def backend(graph: Any, _: Any) -> Any:
            compiled.append(graph)
            return graph

        return real(call, backend=backend, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", counting)
    found = suite.shapes.shapes("depthwise", ["b0"])[:10]
    for shape in found:
        case = suite.cases.depthwise(shape._replace(size=8), "infer", 1, CPU, torch.float32)
        suite.providers.step("compile", case)()
    assert len(compiled) == len(found) > 8


def _run(*arguments: str, start: tuple[str, ...] = ("-m", "pytest")) -> subprocess.CompletedProcess[str]:
    options = (
        "--benchmark-only",
        "--bench-models",
        "b0",
        "--bench-batch",
        "2",
        "--bench-device",
        "cpu",
        "-q",
    )
    command = [sys.executable, *start, *arguments, *options, "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_suites_run_and_tell_everything(tmp_path: Path) -> None:
    out = tmp_path / "shapes.json"
    chosen = ("--bench-quick", "--bench-seconds", "0.01", "-k", "stage7-k3s1 and infer")
    run = _run("benchmarks", *chosen, "--benchmark-json", str(out))
    assert run.returncode == 0, run.stdout[-2000:]
    data = json.loads(out.read_text())
    assert {entry["extra_info"]["op"] for entry in data["benchmarks"]} >= {"mbconv", "depthwise", "pointwise"}
    assert {entry["group"] for entry in data["benchmarks"]} >= {"mbconv infer b0-stage7-k3s1"}
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        assert info["p20_ms"] <= info["median_ms"] <= info["p80_ms"] and "data" not in entry["stats"]
        assert info["median_ms"] == pytest.approx(entry["stats"]["median"] * 1e3)
        speed = info["bytes"] / info["median_ms"] / 1e6
        assert info["gb_per_s"] == pytest.approx(speed, rel=0.1, abs=0.01)
        assert info["copy_fraction"] == pytest.approx(speed / info["copy_gb_per_s"], rel=0.1, abs=1e-3)
        assert info["flops"] > 0 and info["matmul_gflop_per_s"] > 0
        assert torch.__version__.startswith(info["torch"].split("+")[0])
        # Where the kernel forgets peaks on demand, a call needs at least its output.
        if info["peak_memory_mb"] is not None and info["op"] == "mbconv":
            assert info["peak_memory_mb"] > 0
    assert data["environment"]["device_name"] and data["environment"]["copy_gb_per_s"] > 0

    late = _run("benchmarks/test_mbconv.py", *chosen, "--bench-budget", "1e-9", "-rs")
    assert late.returncode == 0 and "the time budget was used up" in late.stdout
    assert "3 skipped" in late.stdout and "passed" not in late.stdout


@pytest.mark.slow
def test_a_wrong_kernel_is_not_timed() -> None:
    # Off by a thousandth.
    spoil = (
        "import sys, pytest; from effnet_fast import ops; real = ops.depthwise\n"
        "def wrong(*a, **k):\n    out = real(*a, **k)\n    return out._replace(y=out.y * 1.001)\n"
        "ops.depthwise = wrong\nsys.exit(pytest.main(sys.argv[1:]))"
    )
    chosen = ("--bench-providers", "effnet-fast-cpu", "-k", "fused and stage7")
    run = _run("benchmarks/test_depthwise.py", *chosen, start=("-c", spoil))
    assert run.returncode == 1 and "exceeds" in run.stdout and "1 failed" in run.stdout, run.stdout[-2000:]
