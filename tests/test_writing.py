"""What a command is told to write: refused in one sentence before the work is done, and written whole."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from bench_rows import make_row

from effnet_fast import EffnetFastError, build
from effnet_fast.bench import report, results
from effnet_fast.cli import main
from effnet_fast.system import writing


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "e2e.json"
    rows = [make_row("eager", 2.0), make_row("effnet-fast", 1.0)]
    results.write(path, {"environment": results.facts("cpu"), "rows": rows})
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_trying_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("earlier")
    writing.check_file(tmp_path / "file", "bench")
    writing.check_folder(tmp_path, "bench")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "earlier"


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("earlier")
    link.symlink_to(target)
    with writing.replacing(link, "bench") as file:
        file.write("later")
        file.flush()
        assert target.read_text() == "earlier"
    assert (link.is_symlink(), target.read_text(), names(tmp_path)) == (True, "later", ["link", "target"])


def test_what_is_no_file_is_written_in_its_place(tmp_path: Path) -> None:
    """/dev/stdout and /dev/null must stay what they are; here a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writing.check_file(pipe, "report")
    with writing.replacing(pipe, "report") as file:
        file.write("page")
    assert os.read(reader, 10) == b"page" and pipe.is_fifo()
    os.close(reader)


@pytest.mark.parametrize(
    ("command", "option", "target", "reason"),
    [
        ("report", "-o", "folder", "Is a directory"),
        ("report", "-o", "e2e.json/page.html", "exists|Not a directory"),
        ("report", "--png", "e2e.json", "exists"),
        ("report", "--png", "e2e.json/png", "exists|Not a directory"),
        ("bench", "--out", "folder", "Is a directory"),
        ("bench", "--json", "folder.json", "Is a directory"),
        ("bench", "--csv", "e2e.json/rows.csv", "exists|Not a directory"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(
    command: str,
    option: str,
    target: str,
    reason: str,
    measured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("folder", "folder.json"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(report, "load", lambda *_: pytest.fail("it began to work"))
    monkeypatch.setattr("effnet_fast.bench.sweep.Sweep.run", lambda *_: pytest.fail("it began to measure"))
    what = [str(measured)] if command == "report" else ["b0", "--providers", "eager"]
    assert main([command, *what, option, str(tmp_path / target)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"effnet-fast: error: {command}: cannot write {tmp_path}")
    assert err.count("\n") == 1 and re.search(reason, err)
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


def test_build_says_at_once_where_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setattr(build, "output_folders", lambda root: (tmp_path / "cache" / "x", tmp_path / "work"))
    monkeypatch.setattr(build, "run", lambda *_: pytest.fail("it began to build"))
    assert main(["build"]) == 2
    assert capsys.readouterr().err.startswith("effnet-fast: error: build: cannot write ")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EffnetFastError, match="^build: cannot write .*: Permission denied$"):
        writing.check_folder(tmp_path, "build")
