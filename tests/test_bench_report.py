"""The report's page, table and figures; the shape suites; what the repository says of its results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from bench_rows import make_row

from effnet_fast.bench import blocks, report, results
from effnet_fast.bench.report import page, svg
from effnet_fast.cli import main
from effnet_fast.models import list_models

ROOT = Path(__file__).resolve().parent.parent


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
