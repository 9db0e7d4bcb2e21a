"""``effnet-fast classify`` on files of any name, and on weights as training scripts leave them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

import effnet_fast
from effnet_fast.cli import main

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of Lightning: B0 with three classes behind a prefix."""
    path = tmp_path_factory.mktemp("weights") / "last.ckpt"
    state = effnet_fast.b0(num_classes=3).state_dict()
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}, "callbacks": {}}, path)
    return path


def test_names_that_the_terminal_cannot_print_are_escaped(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PYTHONIOENCODING=ascii makes of stdout; file names, labels and bytes that are no text at all."""
    names = ["Gr\u00fc\u00dfe \u2603.png", b"caf\xe9.png".decode(errors="surrogateescape")]
    for name in names:
        Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    (tmp_path / "labels.txt").write_text("\u732b\n\u72ac\n\u725b\n", encoding="utf-8")
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding="ascii", errors="strict"))
    paths = [str(tmp_path / name) for name in names]
    options = ["--weights", str(checkpoint), "--labels", str(tmp_path / "labels.txt"), "--device", "cpu"]
    code = main(["classify", *paths, *options])
    refused = main(["classify", str(tmp_path / "\u2603.png"), *options])
    sys.stdout.flush()
    sys.stderr.flush()
    text, errors = (stream.getvalue().decode("ascii") for stream in written.values())
    assert code == 0
    assert "Gr\\xfc\\xdfe \\u2603.png" in text and "caf\\udce9.png" in text and "\\u732b" in text
    assert "weights: " in text and "the prefix 'model.' was taken off its names" in text
    assert refused == 2 and "\\u2603.png does not exist" in errors
