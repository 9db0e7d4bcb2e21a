"""Tables, lines, JSON and progress: rich on a terminal where it is installed, plain text elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..bench.remaining import Remaining
from . import table as layout


def _console(stream: Any) -> Any:
    """A rich console for a terminal, or ``None``."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False)


def line_width() -> int | None:
    """Characters of a line: those of the terminal, or of COLUMNS; ``None`` where the output is a file or a pipe."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return None
    return shutil.get_terminal_size().columns


def wrapped(text: str, indent: int = 0) -> list[str]:
    """Lines of the width of the terminal; words stay whole, and so do names with hyphens."""
    room = line_width()
    if room is None or len(text) <= room:
        return [text]
    margin = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text.lstrip(),
        room,
        initial_indent=margin,
        subsequent_indent=" " * indent or margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def error_line(text: str) -> str:
    """What a failure looks like on stderr, whatever line breaks its message has."""
    return f"effnet-fast: error: {' '.join(text.split())}"


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
        self._write(text)

    def error(self, text: str) -> None:
        """One line on stderr, with JSON too: something failed, and the command goes on."""
        print(error_line(text), file=sys.stderr, flush=True)

    def heading(self, text: str) -> None:
        for line in wrapped(text):
            self._write(line, "bold")

    def sentence(self, text: str, indent: int = 0) -> None:
        """Text that ends its lines between words; lines after the first begin at ``indent``. Commands to be copied are
        given to :meth:`line`, where the terminal may break a word but a copy does not."""
        for line in wrapped(text, indent):
            self._write(line)

    def _write(self, text: str, style: str = "") -> None:
        if self.as_json:
            return
        if self._console:
            # Wrapped by the terminal, not by rich, which would break paths and commands to be copied.
            self._console.print(text, style=style or None, markup=False, soft_wrap=True)
        else:
            print(text)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        title: str = "",
        minor: Sequence[Sequence[str]] = (),
    ) -> None:
        """A table; a column whose cells are all numbers (or empty) is aligned to the right.

        Where the line is too short, groups of ``minor`` columns are left out, as a line below says, and what then
        remains is folded into several tables that share their first column, which may be shortened.
        """
        room = line_width()
        widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
        if room is not None and sys.stdout.isatty():
            others = sum(width + len(layout.GAP) for width in widths[1:])
            widths[0] = min(widths[0], max(room // 2, room - others, len(columns[0])))
            rows = [(layout.shortened(row[0], widths[0]), *row[1:]) for row in rows]
        pieces, left_out = layout.layout(columns, widths, room, minor)
        if title:
            self.heading(title)
        for number, piece in enumerate(pieces):
            if number:
                self.line()
            header, *body = layout.lines(columns, rows, widths, piece)
            self._write(header, "bold cyan")
            if not self._console:
                self.line(layout.GAP.join("-" * widths[i] for i in piece))
            for text in body:
                self.line(text)
        if left_out:
            self.line(f"left out at this width: {', '.join(left_out)}")

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

    @contextmanager
    def remaining(self, label: str, remaining: Remaining) -> Iterator[None]:
        """A line on stderr that follows an estimate of the time that is left: a bar of rich, or plain text now and then."""
        ended = threading.Event()
        console = None if self.as_json else _console(sys.stderr)
        if console is None:
            show = partial(_say_now_and_then, label, remaining, ended)
            quiet = self.as_json or not sys.stderr.isatty()
        else:
            show, quiet = partial(_follow, label, remaining, ended, console), False
        thread = threading.Thread(target=show, daemon=True)
        if not quiet:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if not quiet:
                thread.join()


def _follow(label: str, remaining: Remaining, ended: threading.Event, console: Any) -> None:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task(label, total=1.0, left=time_left(remaining))
        while not ended.wait(0.5):
            bar.update(task, completed=remaining.share(), left=time_left(remaining))


def _say_now_and_then(label: str, remaining: Remaining, ended: threading.Event) -> None:
    while True:
        print(f"{label}: {time_left(remaining)}", file=sys.stderr, flush=True)
        if ended.wait(max(5.0, remaining.seconds() / 4) if remaining.known else 5.0):
            return


def time_left(remaining: Remaining) -> str:
    if not remaining.known:
        return "no call has been timed yet"
    return f"about {duration(remaining.seconds())} left"


def duration(seconds: float) -> str:
    """As one says it: 40 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds)):d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
