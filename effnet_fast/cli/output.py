"""Tables, lines, JSON and progress: rich on a terminal where it is installed, plain text elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def _console(stream: Any) -> Any:
    """A rich console for a terminal, or ``None``."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False)


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in "-+" and cell[1:2].isdigit())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: list[bool]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold cyan underline")
    for column, is_right in zip(columns, right, strict=True):
        table.add_column(Text(column), justify="right" if is_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


class Output:
    """Where a subcommand writes. With ``as_json`` only :meth:`data` prints; the rest is silent."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._console = None if as_json else _console(sys.stdout)

    def data(self, value: Any) -> None:
        """The whole result as JSON; prints nothing where text was asked for."""
        if self.as_json:
            print(json.dumps(value, indent=2, default=str))

    def line(self, text: str = "") -> None:
        if self.as_json:
            return
        if self._console:
            # Wrapped by the terminal, not by rich, which would break paths and commands to be copied.
            self._console.print(text, markup=False, soft_wrap=True)
        else:
            print(text)

    def heading(self, text: str) -> None:
        if self.as_json:
            return
        if self._console:
            self._console.print(text, style="bold", markup=False)
        else:
            print(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """A table; a column whose cells are all numbers (or empty) is aligned to the right."""
        if self.as_json:
            return
        right = [
            any(row[i] for row in rows) and all(_is_number(row[i]) for row in rows if row[i])
            for i in range(len(columns))
        ]
        if title:
            self.heading(title)
        if self._console:
            self._console.print(_rich_table(columns, rows, right))
            return
        widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
        for row in (columns, ["-" * width for width in widths], *rows):
            cells = (
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(row, widths, right, strict=True)
            )
            print("  ".join(cells).rstrip())

    def bar(self, share: float, width: int) -> str:
        """A bar for a table: ``share`` of ``width`` characters, one at least; ``#`` where blocks cannot be printed."""
        block = "\u2588"
        try:
            block.encode(sys.stdout.encoding or "ascii")
        except UnicodeEncodeError:
            block = "#"
        return block * max(1, round(share * width))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Any]:
        """A progress bar on stderr, if that is a terminal; yields a function to call after each of ``total`` steps."""
        console = None if self.as_json else _console(sys.stderr)
        if console is None:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)
