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
import torch
from torch import nn

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


# Three minutes; resuming two processes is in make test.
@pytest.mark.full
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


def accuracy(output: Path) -> float:
    with (output / "log.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["accuracy"])


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_the_documented_command_learns_the_digits(tmp_path: Path) -> None:
    """The command of docs/training.md as it stands there. With constant averages it ended at chance."""
    lines = (ROOT / "docs/training.md").read_text().splitlines()
    documented = next(line for line in lines if line.startswith("    python examples/train.py"))
    options = documented.split()[2:-1]
    assert options[-1] == "--output"
    script = [sys.executable, str(ROOT / "examples/train.py"), *options, str(tmp_path), "--no-tensorboard"]
    subprocess.run(script, check=True, env=environment(), timeout=1500)
    assert accuracy(tmp_path) > 0.95


def test_statistics_and_averages_keep_up_with_a_short_run(training_averages: ModuleType) -> None:
    """Activations a thousandth of what the initial running variance says, 40 steps: evaluation must see what training sees."""
    torch.manual_seed(0)
    steps = 40
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.01), nn.Flatten(), nn.Linear(4 * 64, 2)
    )
    momentum = training_averages.Momentum(model, steps)
    average = training_averages.averaged_model(model, 0.999)
    x = 1e-3 * torch.randn(64, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(steps):
        momentum.set(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), (x.sum((1, 2, 3)) > 0).long())
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
    with torch.no_grad():
        trained = model(x)
        for evaluated in (model.eval(), average.module.eval()):
            assert (evaluated(x) - trained).abs().max() < 0.2 * trained.abs().max()


def refused(*arguments: str) -> str:
    """The one line with which the script ends."""
    script = [sys.executable, str(ROOT / "examples/train.py"), *arguments]
    done = subprocess.run(script, env=environment(), timeout=300, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: "), done.stderr
    return lines[0]


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,epoch\n")
    assert "holds a run: --resume goes on with it" in refused("--output", str(tmp_path))
    assert (tmp_path / "log.csv").read_text() == "step,epoch\n"


def test_wrong_folders_are_one_sentence(tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "run"))
    assert f"{tmp_path / 'none' / 'train'} is no folder" in refused("--data", str(tmp_path / "none"), *output)
    for part in ("train", "val"):
        (tmp_path / "data" / part).mkdir(parents=True)
    assert "Couldn't find any class folder" in refused("--data", str(tmp_path / "data"), *output)
    (tmp_path / "file").write_text("")
    assert "cannot be made: " in refused("--output", str(tmp_path / "file" / "run"))


def test_ctrl_c_leaves_a_checkpoint_and_no_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (tmp_path / "log.csv").exists() or len((tmp_path / "log.csv").read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=240)
    done = len(losses(tmp_path))
    assert (
        process.returncode == 130
        and told == f"train.py: stopped at step {done}, checkpoint written; --resume goes on\n"
    )
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == done
    again = command(tmp_path, "--resume", "--max-steps", str(done + 1))
    subprocess.run(again, check=True, env=environment(), timeout=300)
    assert len(losses(tmp_path)) == done + 1


def test_ctrl_c_before_the_first_step_is_one_word(tmp_path: Path) -> None:
    """Sent while the data are read."""
    script = (
        "import os, runpy, signal, sys, training_data\n"
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "training_data.datasets = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    _, *given = command(tmp_path / "run")
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), environment().get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", script, *given],
        env=environment() | path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (130, "train.py: interrupted\n")


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


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def training_log() -> ModuleType:
    return example("training_log")


@pytest.fixture(scope="module")
def training_averages() -> ModuleType:
    return example("training_averages")


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
