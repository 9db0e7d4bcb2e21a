"""The command line around its commands: help, interruption, pipes, terminals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from command_line import Result
from terminal import Terminal

import effnet_fast
from effnet_fast import cli
from effnet_fast.cli.output import Output


def test_no_command_shows_the_help(command: Callable[..., Result]) -> None:
    code, out, err = command()
    assert (code, out) == (2, "") and "usage: effnet-fast" in err and "classify" in err


def test_version_and_help(command: Callable[..., Result]) -> None:
    assert command("--version") == (0, f"effnet-fast {effnet_fast.__version__}\n", "")
    for name in cli.COMMANDS:
        code, out, _ = command(name, "--help")
        assert code == 0 and "--json" in out


def test_interrupt(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.models, "run", interrupt)
    assert command("models") == (130, "", "effnet-fast: interrupted\n")


def run_module(*arguments: str, **options) -> subprocess.CompletedProcess:  # type: ignore[no-untyped-def]
    call = [sys.executable, "-m", "effnet_fast", *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.mark.slow
def test_as_a_module() -> None:
    done = run_module("models", "b0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parameters"] == 5288548
    done = run_module("models", "b9")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr


@pytest.mark.slow
def test_closed_pipe() -> None:
    command = f"set -o pipefail; {sys.executable} -m effnet_fast info --no-devices --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


@pytest.mark.parametrize("rich", [True, False])
def test_output_on_a_terminal(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen, errors = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", errors)
    output = Output(as_json=False)
    output.table(("name", "value"), [("[bold]x[/bold]", "1.5"), ("y", "10")], "title")
    output.line("a [markup] line")
    with output.progress("working", 2) as advance:
        advance()
        advance()
    text = screen.getvalue()
    # What looks like markup is shown as it is.
    assert "[bold]x[/bold]" in text and "a [markup] line" in text and "title" in text
    assert ("\x1b[" in text) == rich
    assert ("working" in errors.getvalue()) == rich


def test_numbers_are_aligned_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(("name", "ms"), [("a", "1.50"), ("b", "10.25"), ("c", "")])
    assert capsys.readouterr().out.splitlines() == [
        "name     ms",
        "----  -----",
        "a      1.50",
        "b     10.25",
        "c",
    ]


def test_json_prints_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.heading("h")
    output.line("l")
    output.table(("a",), [("b",)], "t")
    with output.progress("p", 1) as advance:
        advance()
    output.data({"x": 1})
    assert json.loads(capsys.readouterr().out) == {"x": 1}
