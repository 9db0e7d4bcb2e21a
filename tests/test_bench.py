"""The benchmark package: statistics, comparison, shapes, the roofline, a sweep with its failures, the report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from effnet_fast.bench import accuracy, blocks, report, results, roofline, sweep, targets, timing
from effnet_fast.bench.providers import PROVIDERS, Prepared, default_providers, inference_step, is_ours
from effnet_fast.bench.report import page, svg
from effnet_fast.bench.stats import Spread, geometric_mean, quantile, summarize, verdict
from effnet_fast.bench.targets import Job
from effnet_fast.cli import main
from effnet_fast.errors import EffnetFastError
from effnet_fast.models import list_models
from effnet_fast.models import summarize as summarize_model

ROOT = Path(__file__).resolve().parent.parent
JOB = Job("b0", "infer", 2, 32, "fp32")


def make_row(provider: str, median: float | None, spread: float = 0.05, **changes: Any) -> results.Row:
    samples = None if median is None else [median * 1e-3 * f for f in (1 - spread, 1, 1 + spread)]
    answer = {"status": "ok", "samples": samples, "peak_memory_mb": 12.0, "max_error": 1e-6}
    if median is None:
        answer = {"status": "out of memory", "reason": "too large"}
    return {**sweep.make_row(JOB, provider, answer), **changes}


# --- statistics ---


@pytest.mark.parametrize("count", [1, 2, 3, 10, 57])
def test_quantiles_are_numpys(count: int) -> None:
    values = torch.rand(count).tolist()
    for q in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert quantile(values, q) == pytest.approx(numpy.quantile(values, q))
    assert summarize(values) == pytest.approx(tuple(numpy.quantile(values, (0.5, 0.2, 0.8))))


@pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_quantile_refuses(values: list[float], q: float) -> None:
    with pytest.raises(EffnetFastError, match="quantile"):
        quantile(values, q)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (Spread(8.0, 7.9, 8.1), "better"),
        (Spread(12.0, 11.9, 12.1), "worse"),
        (Spread(10.1, 10.0, 10.2), "same"),
        # Medians far apart, but the ranges meet: no verdict.
        (Spread(8.0, 7.0, 9.6), "same"),
        (Spread(12.0, 10.4, 14.0), "same"),
    ],
)
def test_verdict_respects_the_spread(new: Spread, expected: str) -> None:
    assert verdict(Spread(10.0, 9.5, 10.5), new) == expected


def test_tiny_changes_are_no_verdict_even_without_spread() -> None:
    exact = Spread(10.0, 10.0, 10.0)
    assert verdict(exact, Spread(9.9, 9.9, 9.9)) == "same"
    assert verdict(exact, Spread(9.7, 9.7, 9.7)) == "better"
    assert verdict(exact, Spread(10.3, 10.3, 10.3)) == "worse"


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


# --- rows, speed-ups, comparison ---


def test_speedup_is_against_the_fastest_baseline() -> None:
    rows = [
        make_row("eager", 10.0),
        make_row("compile", 6.0),
        make_row("effnet-fast", 3.0),
        make_row("openvino", None),
    ]
    results.add_speedups(rows)
    assert [row["speedup"] for row in rows] == [pytest.approx(0.6), 1.0, pytest.approx(2.0), None]


def test_speedup_needs_a_baseline_of_the_same_job() -> None:
    rows = [make_row("eager", 10.0, batch=64), make_row("effnet-fast", 3.0)]
    results.add_speedups(rows)
    assert rows[1]["speedup"] is None


def test_a_row_has_the_promised_columns_and_pools_all_samples() -> None:
    row = make_row("eager", 4.0)
    assert (row["median_ms"], row["images_per_second"], row["samples"]) == (4.0, 500.0, 3)
    assert 3.8 < row["p20_ms"] < 4.0 < row["p80_ms"] < 4.2
    assert set(results.COLUMNS) <= set(row)
    failed = make_row("eager", None)
    assert failed["status"] == "out of memory" and failed["reason"] == "too large"
    assert set(results.COLUMNS) <= set(failed) and failed["median_ms"] is None


def test_compare_matches_jobs_and_skips_failures() -> None:
    old = [
        make_row("eager", 10.0),
        make_row("compile", 5.0),
        make_row("openvino", None),
        make_row("tensorrt", 1.0),
    ]
    new = [
        make_row("effnet-fast", 1.0),
        make_row("eager", 5.0),
        make_row("compile", 9.0),
        make_row("openvino", 2.0),
    ]
    changes = results.compare(old, new)
    assert [(c.key[-1], c.verdict) for c in changes] == [("eager", "better"), ("compile", "worse")]
    assert (changes[0].old_ms, changes[0].new_ms) == (10.0, 5.0)


def test_json_and_csv_come_back(tmp_path: Path) -> None:
    data = {"environment": {"torch": "2"}, "rows": [make_row("eager", 1.0), make_row("compile", None)]}
    results.write(tmp_path / "deep" / "a.json", data)
    assert results.read(tmp_path / "deep" / "a.json") == json.loads(json.dumps(data))
    results.write_csv(tmp_path / "a.csv", data["rows"])
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].split(",") == list(results.COLUMNS) and len(lines) == 3


@pytest.mark.parametrize(
    "content", ["", "[]", '{"rows": []}', '{"environment": {}, "rows": [{"model": "b0"}]}']
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(EffnetFastError, match=re.escape(str(path))):
        results.read(path)


# --- shapes and the roofline ---


@pytest.mark.parametrize("name", list_models())
def test_blocks_are_the_models_blocks(name: str) -> None:
    network, summary = blocks.network(name), summarize_model(name)
    assert len(network.blocks) == sum(s.repeats for s in summary.stages if s.name.startswith("stage"))
    for number, stage in enumerate(summary.stages[1:-2], 1):
        first, last = (
            next(b for b in order if b.stage == number) for order in (network.blocks, network.blocks[::-1])
        )
        assert (first.in_channels, first.size, first.stride) == (
            stage.in_channels,
            stage.input_size,
            stage.stride,
        )
        assert (last.out_channels, last.out_size) == (stage.out_channels, stage.output_size)
    work = roofline.kernels(network, "fused", "infer")
    # Independent of the blocks' own arithmetic: multiply-adds and parameters as counted on the real model.
    assert sum(k.dense + k.stencil for k in work) + _gate_work(network) == summary.multiply_adds
    norms = 2 * (
        network.stem_channels + network.head_channels + sum(_norm_channels(b) for b in network.blocks)
    )
    assert sum(k.parameters for k in work) + norms + 1000 == summary.parameters


def _gate_work(network: blocks.Network) -> int:
    return sum(2 * b.channels * b.squeeze for b in network.blocks)


def _norm_channels(block: blocks.Block) -> int:
    return block.channels * (2 if block.expands else 1) + block.out_channels


def test_names_tell_blocks_of_a_model_apart() -> None:
    names = {b.name for b in blocks.network("b4").blocks}
    assert {"b4-stage3-k5s2", "b4-stage3-k5s1-res", "b4-stage5-k5s1", "b4-stage5-k5s1-res"} <= names
    kinds = {tuple(b) for b in blocks.network("b4").blocks}
    assert len(kinds) == len(names)


def test_bytes_of_one_block_by_hand() -> None:
    block = blocks.Block("b0", 5, 112, 672, 112, 5, 1, 14, 28)
    alone = blocks.Network("b0", 8, 8, 4, (block,), 8, 8, 4)
    without = alone._replace(blocks=())
    work = roofline.kernels(alone)[1:5]
    assert [k.name for k in work] == ["expand", "depthwise", "squeeze_excite", "project"]
    x, e = 112 * 196, 672 * 196
    assert [k.elements for k in work] == [x + e, 2 * e, 2 * 672, e + 2 * x]
    assert work[1].stencil == 25 * e and work[0].dense == 112 * e
    both = [roofline.bytes_per_image(roofline.kernels(n), batch=4, element_size=2) for n in (alone, without)]
    parameters = 2 * 112 * 672 + 25 * 672 + 2 * 672 * 28 + 28 + 672
    assert both[0] - both[1] == pytest.approx(2 * (3 * x + 4 * e + 2 * 672 + parameters / 4))


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_fusing_more_moves_less(mode: str) -> None:
    for name in ("b0", "b4", "b7"):
        network = blocks.network(name)
        eager, compiled, fused = (
            roofline.bytes_per_image(roofline.kernels(network, design, mode), 64)
            for design in ("eager", "compiled", "fused")
        )
        assert eager > 1.5 * compiled > 1.5 * 1.4 * fused


def test_floor_is_the_tightest_limit() -> None:
    work = roofline.kernels(blocks.network("b0"))
    memory = roofline.seconds_per_image(work, roofline.Device(1e12), 8)
    assert memory == pytest.approx(roofline.bytes_per_image(work, 8) / 1e12)
    slow_math = roofline.seconds_per_image(work, roofline.Device(1e12, dense_flops=1e6), 8)
    assert slow_math > 2 * sum(k.dense for k in work) / 1e6
    with pytest.raises(EffnetFastError, match="roofline"):
        roofline.kernels(blocks.network("b0"), "magic")


# --- models and providers ---


def test_model_names() -> None:
    assert targets.parse("efficientnet-b3")[1:] == (300, "b3")
    pytest.importorskip("torchvision")
    build, resolution, member = targets.parse("torchvision:efficientnet_b1")
    assert (resolution, member) == (240, "b1") and isinstance(build(), torch.nn.Module)
    assert isinstance(targets.parse("torch.nn:Identity")[0](), torch.nn.Identity)


@pytest.mark.parametrize(
    "name", ["b9", "torchvision:", "torchvision:nothing", "no.such:thing", "torch:nothing", "builtins:dict"]
)
def test_wrong_model_names(name: str) -> None:
    with pytest.raises(EffnetFastError):
        targets.parse(name)[0]()


def test_jobs() -> None:
    jobs = sweep.make_jobs(["b0@1,8", "b4"], ["infer", "train"], [2], [], ["fp32"])
    assert [(j.model, j.mode, j.batch, j.resolution) for j in jobs] == [
        *(("b0", mode, batch, 224) for mode in ("infer", "train") for batch in (1, 8)),
        *(("b4", mode, 2, 380) for mode in ("infer", "train")),
    ]
    with pytest.raises(EffnetFastError, match="@"):
        sweep.make_jobs(["b0@x"], ["infer"], [1], [], ["fp32"])


def test_default_providers_fit_the_device() -> None:
    assert {"cuda-graph", "effnet-fast-triton"} <= set(default_providers("cuda", quick=False))
    on_cpu = default_providers("cpu", quick=True)
    assert "effnet-fast" in on_cpu and not {"cuda-graph", "compile", "tensorrt"} & set(on_cpu)
    assert [name for name in PROVIDERS if is_ours(name)] == [
        n for n in PROVIDERS if n.startswith("effnet-fast")
    ]


def test_accuracy_sees_a_wrong_model() -> None:
    model, x = targets.stock_model(JOB, torch.device("cpu")), targets.images(JOB, torch.device("cpu"))
    step = inference_step(model, x)
    right = accuracy.max_error(
        Prepared(step, step, None), targets.stock_model(JOB, x.device), x, x.device, JOB
    )
    assert right is not None and right < 1e-4
    wrong = accuracy.max_error(
        Prepared(step, lambda: 1.01 * step(), None), targets.stock_model(JOB, x.device), x, x.device, JOB
    )
    assert wrong == pytest.approx(0.01, rel=0.05)
    assert accuracy.relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_the_clock_reads_what_was_timed() -> None:
    clock = timing.Clock(torch.device("cpu"))
    seconds = clock.run(lambda: time.sleep(0.01))
    time.sleep(0.01)
    assert clock() == seconds and 0.01 <= seconds < 10


# --- whole sweeps ---


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    return ["bench", "b0", "--resolution", "32", "--seconds", "0.02", "--rounds", "2", "--device", "cpu"]


def test_bench_measures_compares_and_keeps_rows(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "now.json"
    # The Triton backend cannot run on a CPU: a row that says so, and the sweep goes on.
    providers = ["--providers", "effnet-fast-triton", "eager", "effnet-fast"]
    assert main([*quick, *providers, "--out", str(out), "--csv", str(tmp_path / "now.csv")]) == 0
    text = capsys.readouterr().out
    assert "eager" in text and "effnet-fast *" in text
    data = results.read(out)
    rows = {row["provider"]: row for row in data["rows"]}
    assert rows["effnet-fast-triton"]["status"] == "unavailable" and rows["effnet-fast-triton"]["reason"]
    for name in ("eager", "effnet-fast"):
        assert rows[name]["median_ms"] > 0 and rows[name]["max_error"] < 1e-3 and rows[name]["samples"] >= 10
    assert rows["eager"]["speedup"] == 1.0 and rows["eager"]["roofline"] > 0
    assert data["environment"]["copy_gb_per_s"] > 0

    # The same measurement against a doctored past, and added to the file.
    for row in data["rows"]:
        for name in ("median_ms", "p20_ms", "p80_ms"):
            row[name] = row[name] and row[name] * 1e-3
    old = tmp_path / "old.json"
    results.write(old, data)
    code = main(
        [
            *quick,
            "--providers",
            "eager",
            "--batch",
            "2",
            "1",
            "--compare",
            str(old),
            "--json",
            "--append",
            "--out",
            str(out),
        ]
    )
    printed = json.loads(capsys.readouterr().out)
    assert code == 1 and [change["verdict"] for change in printed["changes"]] == ["worse"]
    assert len(results.read(out)["rows"]) == 4


def test_a_worker_that_dies_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    process = sweep.Process("eager", "cpu")
    try:
        assert process.ask(do="rates", dtype="fp32")["matmul_flops"] > 0
        assert process._process is not None
        process._process.kill()
        answer = process.ask(do="rates", dtype="fp32")
        assert answer["status"] == "error" and "signal 9" in answer["reason"]
        # And the next question starts another one.
        assert process.ask(do="prepare", job=list(JOB._replace(batch=10**9)))["status"] == "out of memory"
    finally:
        process.close()


def test_the_budget_skips_what_is_left(capsys: pytest.CaptureFixture[str], quick: list[str]) -> None:
    assert main([*quick, "--providers", "eager", "--budget", "0.001", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["status"] for row in rows] == ["skipped"]


def test_interrupted_sweeps_keep_what_they_have(quick: list[str], tmp_path: Path) -> None:
    out = tmp_path / "part.json"
    command = [
        sys.executable,
        "-m",
        "effnet_fast",
        *quick,
        "--providers",
        "eager",
        "--batch",
        *map(str, range(1, 400)),
    ]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while not out.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(results.read(out)["rows"]) >= 1 and "batch 1," in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--providers", "magic"),
        ("--seconds", "0"),
        ("--dtype", "int3"),
        ("--compare", "/nowhere.json"),
        ("--append",),
        ("--device", "tpu"),
    ],
)
def test_bad_options(
    arguments: tuple[str, ...], quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*quick, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("effnet-fast: error: ") and error.count("\n") == 1


# --- the report ---


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    rows = []
    for batch in (1, 8):
        for provider, ms in (("eager", 10.0), ("compile", 6.0), ("effnet-fast", 3.0)):
            rows.append(make_row(provider, ms * batch, batch=batch, images_per_second=1e3 / ms))
    rows.append(make_row("openvino", None, reason="<b>& no memory"))
    path = tmp_path / "e2e.json"
    results.write(path, {"environment": {**results.facts("cpu"), "device_name": "Some CPU"}, "rows": rows})
    return path


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    common = {
        "op": "mbconv",
        "mode": "infer",
        "batch": 8,
        "dtype": "fp32",
        "bytes": 2e6,
        "copy_gb_per_s": 20.0,
    }
    entries = [
        {
            "extra_info": {
                **common,
                "shape": shape,
                "provider": provider,
                "median_ms": ms,
                "gb_per_s": 2.0 / ms,
            }
        }
        for shape, times in (("b0-stage2-k3s2", (2.0, 1.0)), ("b0-stage7-k3s1", (1.0, 2.0)))
        for provider, ms in zip(("eager", "effnet-fast-cpu"), times, strict=True)
    ]
    path = tmp_path / "shapes.json"
    path.write_text(
        json.dumps({"environment": {"device": "cpu", "device_name": "Some CPU"}, "benchmarks": entries})
    )
    return path


def test_the_page_is_self_contained_and_complete(measured: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(measured), str(shapes), "-o", str(out)]) == 0
    text = out.read_text()
    assert not re.search(r"https?://|<script|<link|src=|@import|url\(", text)
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    for title in (
        "Summary",
        "Throughput",
        "Peak memory",
        "Error against fp64",
        "Roofline",
        "Not measured",
        "Environment",
    ):
        assert f"<h3>{title}</h3>" in text
    assert "&lt;b&gt;&amp; no memory" in text
    assert '<b class="win">2.00&times;</b>' in text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    # Throughput and memory by batch, errors, speed-ups, roofline.
    assert len(charts) == 5
    for chart in charts:
        root = ElementTree.fromstring(chart)
        for element in root.iter():
            for name in ("x", "y", "cx", "cy", "x1", "y1", "x2", "y2", "width"):
                assert -1 <= float(element.get(name, 0)) <= 1000, ElementTree.tostring(element)
    speedups = next(chart for chart in charts if "b0-stage2-k3s2" in chart)
    assert "2.00×" in speedups and "0.50×" in speedups and "bar loss" in speedups


def test_text_and_figures(
    measured: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(measured), "--text"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "batch 8" in line)
    assert line.split()[-1] == "2.00" and "compile" in line
    pytest.importorskip("matplotlib")
    assert main(["report", str(measured), str(shapes), "--png", str(tmp_path / "png")]) == 0
    for name in ("latency.png", "shapes.png"):
        assert (tmp_path / "png" / name).read_bytes().startswith(b"\x89PNG")


def test_later_files_replace_earlier_ones(measured: Path, tmp_path: Path) -> None:
    data = results.read(measured)
    data["rows"] = [make_row("effnet-fast", 20.0, batch=1)]
    again = tmp_path / "again.json"
    results.write(again, data)
    (device,) = report.load([measured, again])
    duel = next(d for d in report.duels(device.models, results.job_of) if d.job[2] == 1)
    assert duel.speedup == pytest.approx(0.3) and 'class="loss"' in page.ratio(duel)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234.0, "1.23k"), (2.5e6, "2.5M"), (0.25, "0.25"), (3e-5, "3e-5")]
)
def test_numbers_on_axes(value: float, text: str) -> None:
    assert svg.number(value) == text


# --- what the repository says ---


def test_every_shape_once() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import shapes
    finally:
        sys.path.remove(str(ROOT))
    for kind in ("depthwise", "pointwise", "squeeze_excite", "mbconv"):
        found = shapes.shapes(kind)
        assert len({shape.name for shape in found}) == len(found)
    # All depthwise shapes of all models are there, each once.
    wanted = {
        (b.channels, b.size, b.kernel_size, b.stride) for n in list_models() for b in blocks.network(n).blocks
    }
    found = [(s.in_channels, s.size, s.kernel_size, s.stride) for s in shapes.shapes("depthwise")]
    assert len(found) == len(set(found)) and set(found) == wanted


def test_gpu_script_keeps_within_nine_minutes() -> None:
    plan = subprocess.run(
        [ROOT / "scripts" / "gpu.sh", "--plan"], capture_output=True, text=True, check=True
    ).stdout
    seconds = {name: int(value) for name, value in (line.split() for line in plan.splitlines())}
    total = seconds.pop("total")
    assert sum(seconds.values()) <= total <= 540
    assert list(seconds)[:3] == ["build", "tests", "inference"]


def test_readme_says_what_the_results_say() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, f"run benchmarks/readme.py: {run.stderr[-500:]}"


@pytest.mark.slow
def test_shape_suites_run_and_refuse_wrong_values(tmp_path: Path) -> None:
    def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = [
            "--benchmark-only",
            "--bench-models",
            "b0",
            "--bench-batch",
            "2",
            "--bench-seconds",
            "0.01",
            "-q",
        ]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "benchmarks",
            *options,
            "--bench-device",
            "cpu",
            *arguments,
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)

    out = tmp_path / "shapes.json"
    run = suite("--bench-quick", "-k", "stage7-k3s1 and infer", "--benchmark-json", str(out))
    assert run.returncode == 0, run.stdout[-2000:]
    data = json.loads(out.read_text())
    ops = {entry["extra_info"]["op"] for entry in data["benchmarks"]}
    assert {"mbconv", "depthwise", "pointwise"} <= ops
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        assert (
            info["p20_ms"] <= info["median_ms"] <= info["p80_ms"]
            and info["bytes"] > 0
            and "data" not in entry["stats"]
        )
        assert info["median_ms"] == pytest.approx(entry["stats"]["median"] * 1e3)

    # A kernel that is off by a thousandth must fail before it is timed.
    spoil = (
        "import sys, pytest; from effnet_fast import ops; real = ops.depthwise\n"
        "def wrong(*a, **k):\n    out = real(*a, **k)\n    return out._replace(y=out.y * 1.001)\n"
        "ops.depthwise = wrong\nsys.exit(pytest.main(sys.argv[1:]))"
    )
    options = [
        "--benchmark-only",
        "--bench-models",
        "b0",
        "--bench-batch",
        "2",
        "--bench-device",
        "cpu",
        "-q",
    ]
    chosen = ["--bench-providers", "effnet-fast-cpu", "-k", "fused and stage7"]
    run = subprocess.run(
        [sys.executable, "-c", spoil, "benchmarks/test_depthwise.py", *options, *chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 1 and "exceeds" in run.stdout and "1 failed" in run.stdout, run.stdout[-2000:]
