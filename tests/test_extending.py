"""docs/extending.md names the files that a change touches: all of them, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
SOURCES = ("effnet_fast", "kernels", "csrc", "cmake")

#: Section -> what a file says that knows one of the kind. The newest of each kind, so that all others are known too.
MARKS = {
    "An activation": re.compile(r"\b(?:k?hardswish)\b", re.IGNORECASE),
    "A depthwise kernel size": re.compile(
        r"\(3, 5, 7\)|kernel != 7|kernel == 7|<7[,>]|case 7:|kKernel == 7|, 4, 5 or 7$", re.MULTILINE
    ),
    "An argument of a backward": re.compile(
        r"incoming\.pool_grad|pool_grad, grad = (?:incoming|self)|shift, gate, pool_grad, a, b"
    ),
    "An instruction set of the CPU": re.compile("avx512_?bf16", re.IGNORECASE),
    "A storage type": re.compile("StorageType::kBFloat16"),
}
#: Files that speak of one in a docstring alone.
SPEAK_ONLY = {"effnet_fast/ops/conv_bn_act.py"}


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(title: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", section(title), re.MULTILINE))


def sources() -> list[Path]:
    files = (path for folder in SOURCES for path in (ROOT / folder).rglob("*"))
    suffixes = {".py", ".h", ".cpp", ".cu", ".cuh", ".cmake"}
    return [path for path in files if path.suffix in suffixes]


@pytest.mark.parametrize("title", MARKS)
def test_every_file_of_a_change_is_listed(title: str) -> None:
    using = {path.relative_to(ROOT).as_posix() for path in sources() if MARKS[title].search(path.read_text())}
    assert using - SPEAK_ONLY == rows(title)


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w./]+/[\w.]+|[\w]+/)`", PAGE))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_adapters_know_their_library_in_the_files_listed() -> None:
    """A library's module names: its adapter, and the rows of the page."""
    mark = re.compile(r"efficientnet_pytorch\.(?:model|utils)|efficientnet_lite_pytorch\.")
    using = {path.relative_to(ROOT).as_posix() for path in sources() if mark.search(path.read_text())}
    listed = rows("A library adapter") | {"effnet_fast/patching/efficientnet_pytorch.py"}
    assert using <= listed
