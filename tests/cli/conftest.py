"""The command line in this process, a photo and a checkpoint for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Result

import effnet_fast
from effnet_fast.cli import main


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs ``effnet-fast ...``: exit code, stdout, stderr."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "photo.png"
    image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """B0 with five classes, random weights."""
    path = tmp_path_factory.mktemp("weights") / "five.pth"
    torch.manual_seed(0)
    torch.save({"state_dict": effnet_fast.b0(num_classes=5).state_dict()}, path)
    return path
