"""The report's page, table and figures; the shape suites; what the repository says of its results."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from bench_rows import make_row

from effnet_fast.bench import report, results
from effnet_fast.bench.report import axis, page
from effnet_fast.cli import bench, main

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
        "flops": 5e7,
        "copy_gb_per_s": 20.0,
        "matmul_gflop_per_s": 300.0,
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
    facts = {**results.facts("cpu"), "device_name": "Some CPU"}
    path.write_text(json.dumps({"environment": facts, "benchmarks": entries}))
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
    assert "2.00×" in speedups and "0.50×" in speedups
    bars = {
        bar.get("class"): bar
        for bar in ElementTree.fromstring(speedups).iter()
        if "bar" in bar.get("class", "")
    }
    # From the line at 1 a win goes right, a loss left.
    win, loss = bars["bar win"], bars["bar loss"]
    assert float(loss.get("x", 0)) + float(loss.get("width", 0)) == pytest.approx(float(win.get("x", 0)))
    # The roof is drawn across the chart, though all these shapes have the same intensity.
    roof = next(line for line in re.findall(r'<polyline points="([^"]*)" class="ceiling"', text))
    assert len({point.split(",")[0] for point in roof.split()}) >= 2
    assert "copies 20 GB/s, matrix products 300 GFLOP/s" in text
    assert "infer, fp32: <b>2.00&times;</b> the fastest baseline (geometric mean of 2; 0 lost" in text


def test_text_and_figures(
    measured: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(measured), "--text"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "batch 8" in line)
    assert line.split()[-5:] == ["2.00", "333.3", "166.7", "compile", "effnet-fast"]
    pytest.importorskip("matplotlib")
    assert main(["report", str(measured), str(shapes), "--png", str(tmp_path / "png")]) == 0
    for name in ("models.png", "shapes.png"):
        assert (tmp_path / "png" / name).read_bytes().startswith(b"\x89PNG")


def test_files_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.json").write_bytes(b"\xff\xd8 no JSON")
    for command in (["report"], ["bench", "b0", "--compare"]):
        assert main([*command, str(tmp_path / "none.json")]) == 2
        assert capsys.readouterr().err.endswith("cannot be read: No such file or directory\n")
        assert main([*command, str(tmp_path / "photo.json")]) == 2
        assert "no JSON" in capsys.readouterr().err


def test_numbers_beside_bars() -> None:
    assert [axis.measured(value) for value in (1.081, 18, 35.2, 990, 1782.4)] == [
        "1.08",
        "18.0",
        "35.2",
        "990",
        "1782",
    ]


def test_later_files_replace_earlier_ones(measured: Path, tmp_path: Path) -> None:
    data = results.read(measured)
    data["rows"] = [make_row("effnet-fast", 20.0, batch=1)]
    again = tmp_path / "again.json"
    results.write(again, data)
    (device,) = report.load([measured, again])
    duel = next(d for d in report.duels(device.models, results.job_of) if d.job[2] == 1)
    assert duel.speedup == pytest.approx(0.3) and 'class="loss"' in page.ratio(duel)


def test_threads_make_it_another_device(shapes: Path, tmp_path: Path) -> None:
    data = json.loads(shapes.read_text())
    data["environment"]["threads"] = 99
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    devices = report.load([shapes, other, shapes])
    assert len(devices) == 2 and devices[1].name == "Some CPU, 99 threads"
    # The same file twice is the same measurements.
    assert [len(device.shapes) for device in devices] == [4, 4]


@pytest.mark.parametrize(("low", "high"), [(3.0, 3.1), (1.0, 9.0), (300.0, 150e3), (2e-7, 0.4), (5.0, 5.0)])
def test_logarithmic_axes_have_ticks_and_hold_the_data(low: float, high: float) -> None:
    scale = axis.Axis([low, high], 50.0, 450.0, log=True)
    assert 2 <= len(scale.ticks) <= 10
    assert all(50 <= scale(tick) <= 450 for tick in scale.ticks)
    assert 50 < scale(low) <= scale(high) < 450


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234.0, "1.23k"), (2.5e6, "2.5M"), (0.25, "0.25"), (3e-5, "3e-5")]
)
def test_numbers_on_axes(value: float, text: str) -> None:
    assert axis.number(value) == text


# --- what the repository says ---


def test_gpu_script_keeps_within_nine_minutes() -> None:
    plan = subprocess.run(
        [ROOT / "scripts" / "gpu.sh", "--plan"], capture_output=True, text=True, check=True
    ).stdout
    seconds = {name: int(value) for name, value in (line.split() for line in plan.splitlines())}
    total = seconds.pop("total")
    assert sum(seconds.values()) <= total <= 540
    assert list(seconds)[:3] == ["build", "tests", "inference"]


def _page_of(tmp_path: Path, rows: list[dict], **facts: object) -> str:
    path = tmp_path / "rows.json"
    results.write(
        path, {"environment": {**results.facts("cpu"), "device_name": "A CPU", **facts}, "rows": rows}
    )
    return report.render(report.load([path]))


def test_jobs_are_sorted_and_columns_are_named_and_aligned(tmp_path: Path) -> None:
    jobs = (("b10", 1, "fp32"), ("b4", 8, "bf16"), ("b4", 8, "fp32"), ("b4", 1, "fp32"), ("b0", 16, "fp32"))
    rows = [
        make_row(provider, ms, model=model, batch=batch, dtype=dtype, roofline=0.5)
        for model, batch, dtype in jobs
        for provider, ms in (("eager", 2.0), ("effnet-fast", 1.0))
    ]
    text = _page_of(tmp_path, rows)
    table = text[text.index("<h3>Summary") : text.index("</table>")]
    found = re.findall(r'<td class="words">(b\d+), infer, batch (\d+), \d+ px, (\w+)', table)
    assert found == [
        *(("b0", "16", "fp32"), ("b4", "1", "fp32"), ("b4", "8", "fp32"), ("b4", "8", "bf16")),
        ("b10", "1", "fp32"),
    ]
    assert "<th>ours, images/s</th><th>baseline, images/s</th>" in table
    assert '<th class="words">fastest baseline</th>' in table and '<td class="words">eager</td>' in table
    # Nothing is beyond the roofline, so nothing is said of it.
    assert "More than the roofline" not in text


def test_what_needs_a_word_gets_one_where_it_stands(tmp_path: Path) -> None:
    rows = [
        make_row(provider, ms * batch, batch=batch, roofline=1.07, images_per_second=rate)
        for batch, rate in ((1, 10.0), (64, 900.0))
        for provider, ms in (("eager", 2.0), ("effnet-fast", 1.0))
    ]
    quiet = _page_of(tmp_path, rows, load_before=0.1)
    busy = _page_of(tmp_path, rows, load_before=3.2, revision="abc", matmul_tflops={"fp32": 0.5})
    assert 'class="banner"' not in quiet and 'class="banner"' in busy and "load average of 3.2" in busy
    assert "107 %*" in busy and "* More than the roofline" in busy
    assert "images/s (logarithmic)" in busy
    # 32 pixels are not what B0 is made for, so the command says them.
    assert "effnet-fast bench b0@1,64 --mode infer --dtype fp32 --resolution 32<" in busy
    assert "In a checkout at abc" in busy
    # Values are words and numbers, not Python's notation.
    assert '<td class="words">fp32 0.5</td>' in busy and "{&#x27;" not in busy


def test_the_command_on_the_page_is_one_that_the_tools_take(tmp_path: Path) -> None:
    rows = [make_row(provider, 1.0, batch=4, dtype="bf16") for provider in ("eager", "effnet-fast")]
    text = _page_of(tmp_path, rows)
    command = re.search(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL).group(1).splitlines()[0]  # type: ignore[union-attr]
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    arguments = parser.parse_args(shlex.split(command)[2:])
    assert arguments.models == ["b0@4"] and arguments.dtype == ["bf16"] and arguments.mode == ["infer"]
