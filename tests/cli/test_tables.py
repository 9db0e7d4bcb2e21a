"""Tables in the width of the terminal: no cell is broken, no line is longer, and what is left out is said."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import pytest
import torch
from bench_rows import make_row
from terminal import Terminal

from effnet_fast.bench import load, results
from effnet_fast.cli import COMMANDS, bench, demo, main, table
from effnet_fast.cli.output import Output, duration, line_width, wrapped

HELPS = [(command, "--help") for command in COMMANDS]
COLUMNS = ("name", "a", "bb", "ccc")
ROWS = [("x", "1.5", "word", "2"), ("longer", "10", "", "33")]


@pytest.fixture(params=["rich", "plain"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    if request.param == "rich":
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def test_everything_where_there_is_room() -> None:
    widths = [6, 3, 4, 3]
    for room in (None, 22):
        assert table.layout(COLUMNS, widths, room, [("a",)]) == ([[0, 1, 2, 3]], [])
    assert table.lines(COLUMNS, ROWS, widths, [0, 1, 2, 3]) == [
        "name      a  bb    ccc",
        "x       1.5  word    2",
        "longer   10         33",
    ]


def test_minor_columns_go_first_and_the_rest_is_folded() -> None:
    widths = [6, 3, 4, 3]
    assert table.layout(COLUMNS, widths, 17, [("a",), ("bb",)]) == ([[0, 2, 3]], ["a"])
    assert table.layout(COLUMNS, widths, 16, [("a",), ("bb",)]) == ([[0, 3]], ["a", "bb"])
    assert table.layout(COLUMNS, widths, 17, []) == ([[0, 1, 2], [0, 3]], [])
    # A column that alone is too wide is shown all the same, beside the first.
    assert table.layout(COLUMNS, widths, 5, []) == ([[0, 1], [0, 2], [0, 3]], [])


def test_long_names_keep_their_end() -> None:
    assert len(table.shortened("folder/of/photos/cat.jpg", 12)) == 12
    assert table.shortened("folder/of/photos/cat.jpg", 12).endswith("s/cat.jpg")
    assert table.shortened("cat.jpg", 12) == "cat.jpg"


def test_a_long_first_column_is_shortened_as_far_as_needed(terminal: Terminal) -> None:
    path = "folder/" * 12 + "cat.jpg"
    with contextlib.redirect_stdout(terminal):
        Output(False).table(("image", "class", "probability"), [(path, "Egyptian cat", "0.987")])
        Output(False).table(("image", "class", "probability"), [(path[-50:], "cat", "0.987")])
    (long,) = [line for line in terminal.plain().splitlines() if "Egyptian" in line]
    assert len(long) == 80 and long.startswith("...") and "cat.jpg  Egyptian cat        0.987" in long
    assert f"{path[-50:]}  cat          0.987" in terminal.plain()


@pytest.mark.parametrize("arguments", [("models",), ("models", "b7")])
def test_no_line_is_longer_than_the_terminal(terminal: Terminal, arguments: tuple[str, ...]) -> None:
    with contextlib.redirect_stdout(terminal):
        assert main(list(arguments)) == 0
    lines = terminal.plain().splitlines()
    assert max(map(len, lines)) <= 80
    headers = [line.split() for line in lines if line.startswith(("stage ", "model "))]
    known = {"kernel", "expand", "stride", *(f"b{i}" for i in range(8))}
    shown = [word for header in headers for word in header]
    if arguments == ("models",):
        assert known <= set(shown)
        assert shown.count("stage") == 2 and "13 x 384" in terminal.plain()
    else:
        assert "kernel" in shown and "mult-adds" in shown


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("models",), ("models", "b7"), ("info", "--no-devices"), ("report", "e2e.json"), *HELPS],
    ids=" ".join,
)
def test_every_output_fits(
    arguments: tuple[str, ...],
    width: int,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No line is longer than the terminal, which would break words; a path alone in its line may be."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    jobs = [{"batch": batch, "images_per_second": 5.0} for batch in (1, 16)]
    rows = [
        make_row(name, 2.0, **job) for job in jobs for name in ("eager-channels-last", "effnet-fast-optimize")
    ]
    results.write(tmp_path / "e2e.json", {"environment": results.facts("cpu"), "rows": rows})
    with contextlib.redirect_stdout(terminal):
        assert main(list(arguments)) == 0
    lines = terminal.plain().splitlines()
    assert len(lines) > 3
    assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []
    # Names with hyphens are not broken where the line ends.
    assert [line for line in lines if re.search(r"\w-$", line)] == []


def test_sentences_end_their_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert wrapped("  isa  avx512f, avx512-bf16, fma", 7) == [
        "  isa  avx512f,",
        "       avx512-bf16,",
        "       fma",
    ]
    monkeypatch.delenv("COLUMNS")
    assert wrapped("x " * 200) == ["x " * 200]


@pytest.mark.parametrize("width", [60, 80])
def test_tables_of_the_demo_fit(width: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    names = ("stock", "patch", "optimize, fp32", "optimize, bf16")
    photo = {
        "photo": "palace",
        "top": {"stock": [{"label": "drilling platform"}]},
        "probabilities": {name: [0.5] for name in names},
        "same_top1": {"patch": True},
        "max_logit_difference": {"patch": 1e-6},
    }
    with contextlib.redirect_stdout(terminal):
        demo._show_photos([photo], list(names), ["patch"], Output(False))
        times = {"stock, channels_last": 30.0, "optimize, bf16": 1234.5}
        demo._show_times(times, {}, torch.device("cpu"), Output(False))
    lines = terminal.plain().splitlines()
    assert max(map(len, lines)) <= width
    # Not folded: every network has its bar beside it.
    assert [line.split("  ")[0] for line in lines if "#" in line] == list(times)


def row(provider: str, **changes: object) -> dict[str, object]:
    values = {
        "model": "b0",
        "mode": "infer",
        "batch": 1,
        "resolution": 224,
        "dtype": "fp32",
        "provider": provider,
    }
    numbers = {"median_ms": 12345.678, "p20_ms": 12345.678, "p80_ms": 12345.678, "images_per_second": 1234.5}
    rest = {"peak_memory_mb": 1234.0, "max_error": 1e-6, "speedup": 1.25, "roofline": 0.5, "status": "ok"}
    return {**values, **numbers, **rest, **changes}


def test_bench_on_a_terminal(terminal: Terminal) -> None:
    failed = row("openvino", median_ms=None, status="unavailable", reason="openvino is not installed")
    with contextlib.redirect_stdout(terminal):
        bench._show([row("eager-channels-last"), row("effnet-fast-optimize"), failed], Output(False))
        bench._show_load({"load_before": 3.0, "load_after": 4.0, "cores": 2}, Output(False))
    text = terminal.plain()
    assert max(map(len, text.splitlines())) <= 80
    assert "left out at this width: p20, p80, memory MB" in text
    assert "not measured: openvino, unavailable: openvino is not installed" in text
    assert "effnet-fast-optimize *" in text and "*: effnet_fast's" in text
    for column in ("error", "speed-up", "of roofline"):
        assert any(line.startswith(f"{column}: ") for line in text.splitlines())
    assert "load average: 3.0 before, 4.0 after, on 2 cores\nothers were at work" in text
    assert "speed-ups can be larger" in " ".join(text.split())


def test_bench_of_an_idle_machine_and_a_wide_page(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("COLUMNS", raising=False)
    bench._show([row("eager")], Output(False))
    bench._show_load({"load_before": 0.1, "load_after": 1.0, "cores": 2}, Output(False))
    text = capsys.readouterr().out
    assert "p20" in text and "memory MB" in text and "left out" not in text and "others were" not in text


def test_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert line_width() is None  # a pipe
    monkeypatch.setenv("COLUMNS", "70")
    assert line_width() == 70


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (40.4, "40 s"), (89, "89 s"), (170, "3 min"), (4800, "80 min"), (6000, "1 h 40 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_cores_in_use_by_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(load, "STAT", stat)
    monkeypatch.setattr(load, "_own_seconds", iter([10.0, 11.0]).__next__)
    monkeypatch.setattr("time.perf_counter", iter([100.0, 102.0]).__next__)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    stat.write_text("cpu  100 0 100 999 0 0 0 0 0 0\ncpu0 1\n")
    others = load.Others()
    # Busy for 4 seconds more, 1 of them this process, in 2 seconds.
    stat.write_text("cpu  400 50 150 9999 0 0 0 0 0 0\n")
    assert others.cores() == pytest.approx(1.5)


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "STAT", tmp_path / "none")
    assert load.Others().cores() is None
