"""Ctrl-C at any moment of any command: exit code 130, one line or nothing, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bench_rows import make_row
from environments import copy_sources

import effnet_fast
from effnet_fast.bench import results

LINE = "effnet-fast: interrupted\n"
COMMAND = [sys.executable, "-m", "effnet_fast"]


def start(command: list[str], cwd: Path, ignored: bool = False, says: bool = True) -> subprocess.Popen[bytes]:
    """In a session of its own, as on a terminal of its own; ``says``: on stderr, what it has imported."""

    def settle() -> None:
        # What a shell runs in the background inherits that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1" if says else ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What a buffer had read ahead would be lost to communicate().
        bufsize=0,
        start_new_session=True,
        preexec_fn=settle,
    )


def wait_for_import(process: subprocess.Popen[bytes], module: str) -> None:
    assert process.stderr is not None
    while line := process.stderr.readline().decode():
        # Imports inside imports are indented.
        if line.split("|")[-1].strip() == module:
            return
    pytest.fail(f"{module} was not imported")


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """As a terminal does it: everything in the foreground gets the signal. Exit code, stdout, stderr without imports."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    said = [line for line in err.decode().splitlines(keepends=True) if not line.startswith("import time:")]
    return process.returncode, out.decode(), "".join(said)


@pytest.mark.parametrize(
    ("module", "delay"),
    [
        ("effnet_fast.system.ctrl_c", 0.05),
        ("effnet_fast.system.ctrl_c", 0.3),
        ("effnet_fast.system.ctrl_c", 0.6),
        ("torch.version", 0.05),
        ("torch", 0.0),
        ("effnet_fast.cli", 0.0),
    ],
)
def test_while_everything_is_imported(module: str, delay: float, tmp_path: Path) -> None:
    process = start([*COMMAND, "info", "--no-devices"], tmp_path)
    wait_for_import(process, module)
    time.sleep(delay)
    assert interrupt(process) == (130, "", LINE)


def test_in_the_script_that_pip_installs(tmp_path: Path) -> None:
    script = tmp_path / "effnet-fast"
    script.write_text("import sys\nfrom effnet_fast.cli import main\nsys.exit(main())\n")
    process = start([sys.executable, str(script), "--help"], tmp_path)
    wait_for_import(process, "torch.version")
    assert interrupt(process) == (130, "", LINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands below take: photos, weights, measurements; and a source tree to build."""
    folder = tmp_path_factory.mktemp("work")
    if image := pytest.importorskip("PIL.Image"):
        image.effect_mandelbrot((900, 600), (-2, -1, 1, 1), 20).convert("RGB").save(folder / "photo.png")
    torch.save(effnet_fast.b7().state_dict(), folder / "b7.pth")
    data = {
        "environment": results.facts("cpu"),
        "rows": [make_row("eager", 2.0), make_row("effnet-fast", 1.0)],
    }
    results.write(folder / "e2e.json", data)
    copy_sources(folder / "sources")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.4, 2.0])
@pytest.mark.parametrize(
    "command",
    [
        ["classify", *["photo.png"] * 60, "--weights", "b7.pth", "--model", "b7"],
        ["demo", "--rounds", "9999"],
        ["models"],
        ["report", "e2e.json", "-o", "page.html"],
        ["bench", "b0", "--providers", "eager", "--batch", *map(str, range(1, 99))],
    ],
    ids=lambda command: command[0],
)
def test_while_a_command_works(command: list[str], delay: float, folder: Path) -> None:
    process = start([*COMMAND, *command], folder)
    wait_for_import(process, "effnet_fast.cli")
    time.sleep(delay)
    code, out, err = interrupt(process)
    if code == 0 or (code == -signal.SIGINT and out):
        # It was quicker, or its last words were said.
        assert command[0] in ("models", "report") and err == ""
    elif command[0] == "bench" and err != LINE:
        assert code == 130 and err == "effnet-fast bench: interrupted, 0 of 98 rows\n"
    else:
        assert (code, out, err) == (130, "", LINE)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.5, 4.0])
def test_while_compilers_work(delay: float, folder: Path) -> None:
    sources = folder / "sources"
    process = start([*COMMAND, "build", "_C", "_ops"], sources)
    wait_for_import(process, "effnet_fast.cli")
    time.sleep(delay)
    code, out, err = interrupt(process)
    assert code == 130 and out.startswith("building ")
    assert err == LINE
    # Nothing half, and no compiler that goes on.
    deadline = time.monotonic() + 30
    while is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(process.pid)
    assert not list((sources / "effnet_fast" / "lib").glob("*.so"))


@pytest.mark.slow
def test_at_the_very_end(tmp_path: Path) -> None:
    """All is said; what remains is Python's own end, where a signal still ends the process."""
    process = start([*COMMAND, "models", "b0", "--json"], tmp_path, says=False)
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        text += process.stdout.readline().decode()
    code, rest, err = interrupt(process)
    assert json.loads(text)["name"] == "b0" and rest == ""
    assert (code, err) in [(0, ""), (-signal.SIGINT, ""), (130, LINE)]


@pytest.mark.slow
def test_twice(tmp_path: Path) -> None:
    """bench keeps what it has at the first; the second ends it at once, and its workers with it."""
    process = start([*COMMAND, "bench", "b0", "--providers", "eager", "--seconds", "100"], tmp_path)
    wait_for_import(process, "effnet_fast.cli")
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = interrupt(process)
    assert code == 130 and err.startswith("effnet-fast") and err.count("interrupted") == err.count("\n") <= 2


@pytest.mark.slow
def test_a_process_in_the_background_goes_on(tmp_path: Path) -> None:
    process = start([*COMMAND, "models", "b0", "--json"], tmp_path, ignored=True)
    wait_for_import(process, "torch")
    code, out, err = interrupt(process)
    assert (code, err) == (0, "") and json.loads(out)["name"] == "b0"


def test_a_library_leaves_signals_alone(tmp_path: Path) -> None:
    code = (
        "import effnet_fast.cli, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    process = start([sys.executable, "-c", code], tmp_path, says=False)
    assert process.communicate(timeout=60)[0] == b"True\n"
