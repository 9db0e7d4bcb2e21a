"""Who may know whom: includes of the native code and imports of the package point down, and never in a circle."""

from __future__ import annotations

import ast
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


#: The floors of the Python package, the lowest first: packages and modules of one row do not know each other.
PYTHON_FLOORS = (
    ("errors", "types", "build", "tolerance"),
    ("records",),
    ("dispatch", "backend.native", "backend.traffic", "backend.network", "backend.recording"),
    ("backend.reference", "kernels"),
    ("backend.cpu", "backend.cuda", "replay"),
    ("ops",),
    ("nn",),
    ("system",),
    ("patching",),
    ("models",),
    ("data",),
    ("inference",),
    ("bench",),
    ("cli",),
)
#: What it is all imported through.
ROOF = {"", "__main__"}


def _modules() -> dict[str, Path]:
    found = {}
    for path in (*(ROOT / "effnet_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "kernels" else parts[1:]
        found[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return found


def _part(module: str) -> str:
    names = module.split(".")
    return ".".join(names[:2]) if names[0] == "backend" else names[0]


def _imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports, wherever in it; not what is for type checkers alone."""
    tree = ast.parse(path.read_text())
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for_checkers = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or node in for_checkers:
            continue
        base = [name for name in package if name][: len([name for name in package if name]) - node.level + 1]
        base += node.module.split(".") if node.module else []
        for alias in node.names:
            whole = ".".join([*base, alias.name])
            found.add(whole if whole in known else ".".join(base))
    return found


def test_every_part_of_the_package_is_on_a_floor() -> None:
    parts = {_part(module) for module in _modules()} - ROOF - {"backend"}
    assert parts == {part for floor in PYTHON_FLOORS for part in floor}


def test_imports_of_the_package_point_down() -> None:
    level = {part: number for number, floor in enumerate(PYTHON_FLOORS) for part in floor}
    known = _modules()
    up = [
        f"{module} imports {target}"
        for module, path in known.items()
        if _part(module) in level
        for target in _imports(module, path, known)
        if _part(target) != _part(module) and level.get(_part(target), 99) >= level[_part(module)]
    ]
    assert sorted(up) == []
