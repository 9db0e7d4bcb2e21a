"""Who may know whom: includes of the native code and imports of the package point down, and never in a circle."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

#: The floors of csrc/cpu, the lowest first; design.md, section 10, says what lives on each.
FLOORS = ("isa", "gemm", "passes", "stencil", "pointwise", "engine", "ops")
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


def test_every_file_of_the_cpu_code_is_on_a_floor() -> None:
    found = {path.relative_to(CSRC / "cpu").parts[0] for path in _sources(CSRC / "cpu")}
    assert found == set(FLOORS)
    assert all(len(path.relative_to(CSRC / "cpu").parts) == 2 for path in _sources(CSRC / "cpu"))


def test_includes_of_the_cpu_code_point_down() -> None:
    up = []
    for path in _sources(CSRC / "cpu"):
        floor = FLOORS.index(path.relative_to(CSRC / "cpu").parts[0])
        for target in INCLUDE.findall(path.read_text()):
            assert (CSRC / target).exists(), f"{path.relative_to(CSRC)}: {target} is not from csrc/"
            first, *rest = Path(target).parts
            if first == "common":
                continue
            # Training, forward and backward, must not need the inference network.
            if first != "cpu" or FLOORS.index(rest[0]) > floor:
                up.append(f"{path.relative_to(CSRC)} includes {target}")
    assert up == []


def test_what_is_common_knows_no_device() -> None:
    for path in _sources(CSRC / "common"):
        for target in INCLUDE.findall(path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(CSRC)} includes {target}"


def test_only_the_ops_know_torch() -> None:
    """Kernels are compiled once per instruction set; torch's headers cost 7 to 13 seconds a file.

    ``engine/run.cpp`` borrows torch's threads and nothing else.
    """
    with_torch = {
        str(path.relative_to(CSRC / "cpu"))
        for path in _sources(CSRC / "cpu")
        if re.search(r"^#include <torch/", path.read_text(), re.MULTILINE)
    }
    assert {name for name in with_torch if not name.startswith("ops/")} == {"engine/run.cpp"}
