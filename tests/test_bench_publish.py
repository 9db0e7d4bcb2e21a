"""Measuring in stages, filing results by device and date, and the README's section made from them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_rows import make_row

from effnet_fast.bench import results
from effnet_fast.bench.providers import PROVIDERS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the folder benchmarks, which is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import publish, readme

    return SimpleNamespace(publish=publish, readme=readme)


def _e2e(folder: Path, date: str, rows: list[results.Row], **facts: Any) -> Path:
    common = {**results.facts("cpu"), "device_name": "Some (R) CPU", "threads": 2, "load_before": 0.1}
    path = folder / "e2e.json"
    results.write(path, {"environment": {**common, "date": f"{date}T10:00:00+00:00", **facts}, "rows": rows})
    return path


def _rows(ours: float) -> list[results.Row]:
    rows = [make_row("eager", 12.0), make_row("openvino", 6.0), make_row("effnet-fast", ours)]
    rows += [make_row(name, ms, batch=8) for name, ms in (("eager", 60.0), ("effnet-fast", 80.0))]
    return [{**row, "images_per_second": row["batch"] / row["median_ms"] * 1e3} for row in rows]


# --- stages ---


@pytest.mark.parametrize("rehearse", [False, True])
def test_stages_fit_twenty_minutes_and_name_what_exists(
    scripts: SimpleNamespace, rehearse: bool, tmp_path: Path
) -> None:
    publish = scripts.publish
    assert sum(stage.seconds for stage in publish.STAGES) <= 1200
    for stage in publish.STAGES:
        command = publish.command(stage, tmp_path, stage.seconds, rehearse)
        budget = command[command.index("--bench-budget" if not stage.models else "--budget") + 1]
        # What a stage may still do after its own budget has to end within the box.
        assert 0 < int(budget) < stage.seconds
        if stage.models:
            names = command[command.index("--providers") + 1 : command.index("--device")]
            assert {"eager", "effnet-fast"} <= set(names) <= set(PROVIDERS)
            assert "--append" in command
            assert not {"openvino", "onnxruntime"} & set(names) or "--mode" not in command


def test_a_stage_is_stopped_when_its_time_is_up(scripts: SimpleNamespace, tmp_path: Path) -> None:
    run = scripts.publish.run
    assert run([sys.executable, "-c", ""], 60) == "ok"
    assert run([sys.executable, "-c", "raise SystemExit(3)"], 60) == "failed"
    # Also where Ctrl-C is ignored, as in a background job of a shell: the stage hears it all the same.
    code = (
        "import sys, time\n"
        "try:\n    open(sys.argv[1], 'w').close(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    open(sys.argv[2], 'w').close()"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        began = time.monotonic()
        # Long enough for Python to start on a busy machine.
        status = run([sys.executable, "-c", code, str(tmp_path / "began"), str(tmp_path / "ended")], 5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == "out of time" and time.monotonic() - began < 40
    assert (tmp_path / "began").exists() == (tmp_path / "ended").exists()


# --- results and README ---


def test_results_are_filed_by_device_and_date(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.publish, "RESULTS", tmp_path / "results")
    source = _e2e(tmp_path, "2031-05-06", _rows(3.0))
    (target,) = scripts.publish.file_results([source])
    assert target == tmp_path / "results" / "some-r-cpu-2-threads" / "2031-05-06-e2e.json"
    assert json.loads(target.read_text()) == json.loads(source.read_text())


def test_the_section_shows_device_dates_and_losses(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.publish, "RESULTS", tmp_path / "results")
    scripts.publish.file_results([_e2e(tmp_path, "2031-05-06", _rows(3.0))])
    text = scripts.readme.section(tmp_path / "results")
    assert "**Some (R) CPU, 2 threads**" in text and "measured 2031-05-06" in text
    assert (
        "| b0 infer, batch 2, 32 px, fp32 | 666.7 | effnet-fast | 333.3 (openvino) | 2.00x | 4.00x |" in text
    )
    assert "0.75x" in text and "Slower than the fastest baseline in 1 of 2 cases, at worst 0.75x" in text
    assert "nothing is claimed for" in text and "Others were at work" not in text

    # A later file replaces the same measurements, and both dates are named.
    changed = [row for row in _rows(2.0) if row["batch"] == 2]
    scripts.publish.file_results([_e2e(tmp_path, "2031-06-01", changed, load_before=3.5)])
    text = scripts.readme.section(tmp_path / "results")
    assert "| 1,000.0 | effnet-fast | 333.3 (openvino) | 3.00x |" in text and "2.00x" not in text
    assert "2031-05-06 and 2031-06-01" in text and "load average up to 3.5" in text


def test_the_section_names_baselines_that_failed(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.publish, "RESULTS", tmp_path / "results")
    failed = make_row("onnxruntime", None)
    scripts.publish.file_results([_e2e(tmp_path, "2031-05-06", [*_rows(3.0), failed])])
    text = scripts.readme.section(tmp_path / "results")
    assert (
        "Not in the comparison: onnxruntime for b0 infer, batch 2, fp32 (out of memory: too large)." in text
    )


def test_single_operations_are_said_in_docs_and_their_losses_counted(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    folder = tmp_path / "results" / "cpu"
    folder.mkdir(parents=True)
    facts = {**results.facts("cpu"), "device_name": "Some CPU", "date": "2031-05-06T00:00:00", "threads": 2}
    common = {"op": "depthwise", "mode": "infer", "batch": 4, "dtype": "fp32"}
    times = {"a": (2.0, 1.0), "b": (1.0, 2.0), "c": (4.0, 1.0)}
    rows = [
        {**common, "shape": shape, "provider": provider, "median_ms": ms}
        for shape, both in times.items()
        for provider, ms in zip(("eager", "effnet-fast-cpu"), both, strict=True)
    ]
    data = {"environment": facts, "benchmarks": [{"extra_info": row} for row in rows]}
    (folder / "2031-05-06-shapes.json").write_text(json.dumps(data))
    text = scripts.readme.operations(tmp_path / "results")
    assert "| depthwise infer, batch 4, fp32 | 3 | 1.59x | 0.50x | 1 |" in text
    assert "depthwise" not in scripts.readme.section(tmp_path / "results")


def test_a_gpu_is_mentioned_only_with_its_results(scripts: SimpleNamespace, tmp_path: Path) -> None:
    assert "nothing is claimed for" in scripts.readme.section(tmp_path / "none")
    folder = tmp_path / "results" / "gpu"
    folder.mkdir(parents=True)
    _e2e(folder, "2031-05-06", _rows(3.0), device="cuda", device_name="Some GPU")
    text = scripts.readme.section(tmp_path / "results")
    assert "**Some GPU**" in text and "nothing is claimed" not in text and "thread" not in text


def test_replacing_needs_the_markers(scripts: SimpleNamespace) -> None:
    readme = scripts.readme
    text = f"a\n{readme.BEGIN}\nold\n{readme.END}\nb"
    assert readme.replaced(text, "new") == f"a\n{readme.BEGIN}\n\nnew\n{readme.END}\nb"
    with pytest.raises(SystemExit, match="lacks"):
        readme.replaced("nothing", "new")


def test_readme_and_docs_say_what_the_results_say() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, f"run benchmarks/readme.py: {run.stderr[-500:]}"
