"""Models and providers by name, whole sweeps, and what may go wrong in them."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from effnet_fast.bench import accuracy, results, sweep, targets, timing
from effnet_fast.bench.process import Process
from effnet_fast.bench.providers import PROVIDERS, Prepared, default_providers, inference_step, is_ours
from effnet_fast.bench.targets import Job
from effnet_fast.cli import main
from effnet_fast.errors import EffnetFastError

JOB = Job("b0", "infer", 2, 32, "fp32")


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
    wanted = accuracy.truth(copy.deepcopy(model), x, x.device, JOB)
    step = inference_step(model, x)
    right = accuracy.max_error(Prepared(step, step, None), wanted, x, x.device, JOB)
    assert right is not None and right < 1e-4
    wrong = accuracy.max_error(Prepared(step, lambda: 1.01 * step(), None), wanted, x, x.device, JOB)
    assert wrong == pytest.approx(0.01, rel=0.05)
    assert accuracy.relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_accuracy_of_training_looks_at_gradients() -> None:
    cpu = torch.device("cpu")
    job = JOB._replace(mode="train", batch=4)
    # Fresh statistics: training does not use them, and making others takes longer than the test.
    model = targets.parse("b0")[0]().train()
    x = targets.images(job, cpu)
    wanted = accuracy.truth(copy.deepcopy(model), x, cpu, job)
    assert wanted is not None and wanted.shape == (32, 3, 3, 3)
    right = accuracy.max_error(Prepared(lambda: None, None, model), wanted, x, cpu, job)
    assert right is not None and right < 1e-2
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 2).mul_(1.2)
    wrong = accuracy.max_error(Prepared(lambda: None, None, model), wanted, x, cpu, job)
    assert wrong is not None and wrong > 5 * right
    # One image has no batch statistics to speak of.
    assert accuracy.truth(model, x[:1], cpu, job) is None


def test_weights_of_a_file_are_the_weights() -> None:
    state = {name: value * 2 for name, value in targets.parse("b0")[0]().state_dict().items()}
    model = targets.stock_model(JOB, torch.device("cpu"), state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_clock_reads_what_was_timed() -> None:
    clock = timing.Clock(torch.device("cpu"))
    seconds = clock.run(lambda: time.sleep(0.01))
    time.sleep(0.01)
    assert clock() == seconds and 0.01 <= seconds < 10


# --- whole sweeps ---


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    return ["bench", "b0", "--resolution", "32", "--seconds", "0.02", "--rounds", "2", "--device", "cpu"]


@pytest.mark.slow
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
        assert rows[name]["median_ms"] > 0 and rows[name]["max_error"] < 1e-3 and rows[name]["samples"] >= 6
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


def test_a_worker_that_dies_is_a_row(tmp_path: Path) -> None:
    process = Process("eager", "cpu")
    try:
        assert process.ask(do="rates", dtype="fp32")["matmul_flops"] > 0
        assert process._process is not None
        process._process.kill()
        answer = process.ask(do="rates", dtype="fp32")
        assert answer["status"] == "error" and "signal 9" in answer["reason"]
        # And the next question starts another one.
        huge = list(JOB._replace(batch=10**9))
        answer = process.ask(do="reference", job=huge, path=str(tmp_path / "reference.pt"))
        assert answer["status"] == "out of memory"
    finally:
        process.close()


def test_the_budget_skips_what_is_left(capsys: pytest.CaptureFixture[str], quick: list[str]) -> None:
    assert main([*quick, "--providers", "eager", "--budget", "0.001", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["status"] for row in rows] == ["skipped"]


@pytest.mark.slow
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
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 240
        while not out.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        text, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    rows = len(results.read(out)["rows"])
    assert rows >= 1 and "batch 1," in text
    assert errors == f"effnet-fast bench: interrupted, {rows} of 399 rows; {out} has what was measured\n"


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
