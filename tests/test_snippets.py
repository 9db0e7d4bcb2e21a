"""Everything that README and docs show: Python is executed in order, commands are parsed, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from effnet_fast.cli import make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

#: Runs before a page's code. Nothing may be downloaded: weights named by torchvision are random ones of the same names.
PRELUDE = """
import re, torchvision
from torchvision.models._api import WeightsEnum
def _random(self, *args, **kwargs):
    return torchvision.models.get_model(re.search(r"efficientnet_b\\d", self.url).group()).state_dict()
WeightsEnum.get_state_dict = _random
"""


def snippets(page: Path) -> list[str]:
    return PYTHON.findall(page.read_text())


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=named)
def test_the_python_on_a_page_runs_in_its_order(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    script = tmp_path / "page.py"
    script.write_text(PRELUDE + "\n".join(snippets(page)))
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:effnet_fast", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_readme_needs_nothing_that_its_own_environment_lacks() -> None:
    """`make demo` installs the extra `demo`; what the README's code imports must be in it."""
    demo = re.search(r"^demo = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert demo is not None
    imported = set()
    for snippet in snippets(ROOT / "README.md"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    absent = [name for name in imported - {"torch", "effnet_fast"} if f'"{name}"' not in demo[1]]
    assert absent == []


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line that shows ``effnet-fast``, comments cut off."""
    found = []
    for page in PAGES:
        for line in re.findall(r"^ {4}(effnet-fast .*)$", page.read_text(), re.MULTILINE):
            found.append((named(page), line))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_on_a_page_are_understood(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    if "..." in words:
        pytest.skip("an outline, not a command")
    assert make_parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = PYTHON.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, target
