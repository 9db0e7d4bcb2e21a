"""models, info and build: results as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Result

import effnet_fast
from effnet_fast import cli
from effnet_fast.backend import native


def test_models_table(command: Callable[..., Result]) -> None:
    code, out, err = command("models")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines()[2:10]}
    assert rows["b0"] == ["b0", "224", "16", "1280", "0.2", "5.29", "M", "0.39", "G"]
    assert rows["b7"] == ["b7", "600", "55", "2560", "0.5", "66.35", "M", "37.75", "G"]
    stage = next(line.split() for line in out.splitlines() if line.startswith("stage5"))
    assert stage[:7] == ["stage5", "5x5", "6", "1", "3", "x", "112"]
    assert stage[-3:] == ["10", "x", "224"]


def test_models_json_is_the_python_result(command: Callable[..., Result]) -> None:
    from effnet_fast.models import summarize

    code, out, _ = command("models", "b3", "--resolution", 64, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(summarize("b3", 64).as_dict()))
    everything = json.loads(command("models", "--json")[1])
    assert [row["name"] for row in everything] == effnet_fast.list_models()


def test_models_stages(command: Callable[..., Result]) -> None:
    code, out, _ = command("models", "EfficientNet-B0")
    assert code == 0
    assert "stage3         5x5       6       2        2        40    28" in out


def test_info(command: Callable[..., Result]) -> None:
    code, out, err = command("info", "--no-devices")
    assert (code, err) == (0, "")
    assert f"effnet-fast {effnet_fast.__version__}" in out
    assert torch.__version__.split("+")[0] in out
    for title in ("system", "packages", "native libraries", "build tools", "backends for fp32 on cpu"):
        assert title in out
    (row,) = [line for line in out.splitlines() if line.startswith("depthwise ")]
    answers = effnet_fast.backends("cpu")["depthwise"]
    assert row.split() == ["depthwise", *("yes" if answer == "ok" else "no" for answer in answers.values())]
    for backend, answer in answers.items():
        assert answer == "ok" or f"{backend}: {answer}" in out


def test_info_json(command: Callable[..., Result]) -> None:
    report = json.loads(command("info", "--no-devices", "--json")[1])
    assert report["packages"]["torch"] == torch.__version__.split("+")[0]
    assert report["backends"]["cpu"]["depthwise"]["reference"] == "ok"
    if native.available("_ops")[0]:
        assert report["native"]["cpu_isa"] == native.cpu_isa()
    assert "devices" not in report


def test_info_names_what_is_missing_and_the_command(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [{"what": "CPU kernels", "reason": "no C++ compiler", "command": "apt install g++"}]
    monkeypatch.setattr(cli.info.environment, "missing", lambda report: missing)
    out = command("info", "--no-devices")[1]
    assert "CPU kernels: no C++ compiler\n    add it with: apt install g++" in out


def test_build_json(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from effnet_fast import build

    manifest = {"products": {"_C": {"file": "_C.so"}}, "missing": {}}
    asked = []

    def fake(root: Path, out: Path, work: Path, products: tuple[str, ...], verbose: bool) -> dict:
        asked.append(products)
        return manifest

    monkeypatch.setattr(build, "build", fake)
    monkeypatch.setattr(build, "source_root", lambda: tmp_path)
    monkeypatch.setattr(build, "output_folders", lambda root: (tmp_path, tmp_path / "work"))
    monkeypatch.setattr(build, "read_manifest", lambda folder: manifest)
    code, out, err = command("build", "_C", "--json")
    assert code == 0 and asked == [("_C",)]
    assert json.loads(out) == {"exit_code": 0, "folder": str(tmp_path), **manifest}
    assert "_C: built" in err
