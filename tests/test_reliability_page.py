"""docs/reliability.md names public reports and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"
REPORT = re.compile(r"[\w.-]+/[\w.-]+( PR)?#\d+")


def rows() -> list[list[str]]:
    """Cells of the table of bugs."""
    lines = PAGE.read_text().split("## Bugs of the field")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]


def defined_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_reports_are_public_numbers() -> None:
    table = rows()
    assert len(table) > 40
    for reports, kind, _ in table:
        assert kind and all(REPORT.fullmatch(report) for report in reports.split(", ")), reports


def test_named_tests_exist() -> None:
    for _, kind, cell in rows():
        named = re.findall(r"`(.+?)::(test_\w+)`", cell)
        assert named and len(named) == cell.count("`") // 2, kind
        for file, test in named:
            assert (TESTS / file).is_file() and test in defined_in(file), f"{kind}: {file}::{test}"


def test_every_test_of_a_field_bug_is_named() -> None:
    text = PAGE.read_text()
    for test in defined_in("test_field_bugs.py"):
        assert not test.startswith("test_") or f"test_field_bugs.py::{test}`" in text, test
