"""What a type checker says of calls to the builders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from environments import ROOT

import effnet_fast

CALLS = """
import effnet_fast

effnet_fast.b0(weights="DEFAULT", num_classes=3, dropout=0.1)
effnet_fast.create("b1", weights=None, recompute_expand=True)
reveal_type(effnet_fast.b7())
effnet_fast.b0(weight="DEFAULT")  # wrong
effnet_fast.b0(num_classes="3")  # wrong
effnet_fast.create("b1", weight=None)  # wrong
"""


@pytest.mark.slow
def test_misspelt_arguments_are_type_errors(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    file = tmp_path / "calls.py"
    file.write_text(CALLS)
    # The cache of `make lint`, where there is one.
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    said = [line.partition("calls.py:")[2] for line in done.stdout.splitlines() if "calls.py:" in line]
    wrong = [number for number, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")]
    assert sorted({int(line.split(":")[0]) for line in said if " error: " in line}) == wrong, done.stdout
    assert any("EfficientNet" in line for line in said if "Revealed type" in line)


def test_misspelt_arguments_are_errors() -> None:
    with pytest.raises(TypeError, match=r"b0.*weight"):
        effnet_fast.b0(weight=None)
    with pytest.raises(TypeError, match=r"b3.*weight"):
        effnet_fast.create("b3", weight=None)
