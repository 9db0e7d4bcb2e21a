"""examples/train.py: fused and stock runs coincide, a killed run resumes on the same curve, two processes do too."""

import csv
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[1]
SMALL = [
    "--size",
    "32",
    "--batch-size",
    "16",
    "--epochs",
    "1",
    "--warmup",
    "2",
    "--ema",
    "0.9",
    "--no-tensorboard",
]


def command(output: Path, *extra: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples/train.py"), *SMALL, "--output", str(output), *extra]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def losses(output: Path) -> list[float]:
    with (output / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    return [float(row["loss"]) for row in rows]


def test_killed_and_resumed_is_the_uninterrupted_curve(tmp_path: Path) -> None:
    """Killed in the middle of an epoch of 93 steps."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole, "--max-steps", "8"), check=True, env=environment(), timeout=300)
    process = subprocess.Popen(
        command(broken, "--max-steps", "8", "--checkpoint-every", "3"), env=environment()
    )
    deadline = time.monotonic() + 240
    while not (broken / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(
        command(broken, "--max-steps", "8", "--resume"), check=True, env=environment(), timeout=300
    )
    assert losses(broken) == losses(whole)
    assert len(losses(whole)) == 8


def test_fused_and_stock_runs_coincide(tmp_path: Path) -> None:
    fused, stock = tmp_path / "fused", tmp_path / "stock"
    on_reference = environment(EFFNET_FAST_BACKEND="reference")
    subprocess.run(command(fused, "--max-steps", "3"), check=True, env=on_reference, timeout=300)
    subprocess.run(command(stock, "--max-steps", "3", "--stock"), check=True, env=environment(), timeout=300)
    ours, theirs = losses(fused), losses(stock)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    # AdamW divides by the gradient's size: where it is zero by mathematics, rounding decides the direction.
    assert ours == pytest.approx(theirs, rel=5e-2)


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of two classes."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("images")
    for part, count in (("train", 12), ("val", 3)):
        for kind in ("dark", "light"):
            (folder / part / kind).mkdir(parents=True)
            for i in range(count):
                colour = (20 * i if kind == "dark" else 255 - 20 * i, 7 * i, 90)
                image.new("RGB", (40 + i, 36), colour).save(folder / part / kind / f"{i}.png")
    return folder


def test_two_processes_on_a_folder_resume_too(tmp_path: Path, folder_of_images: Path) -> None:
    """Under torchrun, with a loading process each and bf16 autocast."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ("--data", str(folder_of_images), "--batch-size", "4", "--workers", "1", "--amp", "bf16")

    def train(output: Path, *extra: str) -> None:
        script = command(output, *options, *extra)[1:]
        subprocess.run([*launcher, *script], check=True, env=environment(), timeout=500)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, "--max-steps", "3")
    train(parts, "--max-steps", "2")
    train(parts, "--max-steps", "3", "--resume")
    assert len(losses(whole)) == 3
    assert losses(parts) == losses(whole)


@pytest.fixture(scope="module")
def training_log() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_log", ROOT / "examples/training_log.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_log_is_cut_back_to_the_checkpoint(training_log: ModuleType, tmp_path: Path) -> None:
    log = training_log.Log(tmp_path, 0, tensorboard=False)
    for step in range(1, 6):
        log.write(step, 0, loss=1 / step, accuracy=None)
    log.close()
    log = training_log.Log(tmp_path, 3, tensorboard=False)
    log.write(4, 0, loss=9.0, accuracy=0.5)
    log.close()
    assert losses(tmp_path) == pytest.approx([1, 1 / 2, 1 / 3, 9])
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard(training_log: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = training_log.Log(tmp_path, 0)
    log.write(1, 0, loss=2.5, accuracy=None)
    log.write(2, 0, loss=2.0, accuracy=0.25)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.5), (2, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(2, 0.25)]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_is_for_terminals(training_log: ModuleType, terminal: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    progress = training_log.Progress(4, stream)
    progress.update(1, "loss 2")
    progress.line("epoch 1")
    text = stream.getvalue()
    assert ("[#######.......................] 1/4  loss 2" in text) is terminal
    assert "epoch 1" in text and text.endswith("\n")
    assert terminal or text == "epoch 1\n"
