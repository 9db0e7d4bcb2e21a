"""Bad input of the command line is one line and exit code 2."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Result, assert_refused


def test_bad_weights_and_labels(
    command: Callable[..., Result], photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert_refused(command("classify", photo), "--weights is missing", "lite0")
    assert_refused(command("classify", photo, "--weights", "nowhere.pth"), "nowhere.pth does not exist")
    assert_refused(command("classify", photo, "--weights", photo), "not a readable checkpoint")
    assert_refused(
        command("classify", photo, "--weights", checkpoint, "--model", "b1"), "do not fit the model"
    )
    assert_refused(command("classify", photo, "--weights", checkpoint, "--model", "b9"), "unknown model 'b9'")
    assert_refused(command("classify", photo, "--weights", "lite0", "--model", "b1"), "lite0", "--model b1")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    assert_refused(command("classify", photo, "--weights", other), "classifier.1.bias")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    given = ("classify", photo, "--weights", checkpoint, "--labels")
    assert_refused(command(*given, names), "has 2 names, expected 5")
    assert_refused(command(*given, tmp_path / "none.txt"), "none.txt cannot be read")
    assert_refused(command(*given, photo), "not a text file")
    names.write_text("\n")
    assert_refused(command(*given, names), "is empty")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], ["bogus", "demo", "classify"]),
        (["models", "b9"], ["unknown model 'b9'"]),
        (["models", "--resolution", "0"], ["positive integer"]),
        (["models", "--nonsense"], ["unrecognized arguments: --nonsense"]),
        (["build", "everything"], ["unknown product 'everything'", "_ops"]),
        (["demo", "--rounds", "0"], ["--rounds", "positive integer"]),
        (["demo", "--device", "tpu"], ["--device", "tpu"]),
        (["demo", "--device", "cuda:"], ["--device", "cuda:"]),
        (["demo", "--device", "cuda:99"], ["cuda:99 is not on this machine"]),
        (["classify", "x.png", "--weights", "lite0", "--backend", "magic"], ["unknown backend 'magic'"]),
        (["classify", "x.png", "--weights", "lite0", "--dtype", "int8"], ["int8"]),
        (["classify"], ["IMAGE"]),
    ],
)
def test_bad_arguments(command: Callable[..., Result], arguments: list[str], words: list[str]) -> None:
    assert_refused(command(*arguments), *words)


def test_a_backend_that_cannot_run_is_refused(
    command: Callable[..., Result], photo: Path, checkpoint: Path
) -> None:
    given = ("classify", photo, "--weights", checkpoint, "--device", "cpu", "--backend", "cuda")
    assert_refused(command(*given), "no backend can run", "cuda:")


def test_missing_packages_name_the_command(
    command: Callable[..., Result],
    photo: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("effnet_fast.data.samples.find_spec", lambda name: None)
    assert_refused(command("demo"), "pip install pillow scikit-image scikit-learn efficientnet-lite-pytorch")
    given = ("classify", photo, "--weights", "lite0")
    assert_refused(command(*given), "pip install pillow efficientnet-lite-pytorch")

    real = builtins.__import__

    def without_pillow(name: str, *rest):  # type: ignore[no-untyped-def]
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    assert_refused(command("classify", photo, "--weights", checkpoint), "pip install pillow")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_tune_without_a_gpu_says_so(command: Callable[..., Result]) -> None:
    code, out, err = command("tune", "--model", "b0")
    assert code == 2 and not out
    assert err.startswith("effnet-fast: error: tune: ") and err.count("\n") == 1
