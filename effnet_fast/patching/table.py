"""The table of :func:`effnet_fast.report`, as text and as HTML for notebooks; a reason that many blocks share is said once."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence

#: block, class, runs, backend, reason
Row = Sequence[str]
LONG = 60
COLUMNS = ("block", "class", "runs", "backend", "reason")


def with_notes(rows: Sequence[Row]) -> tuple[list[list[str]], list[str]]:
    """The rows, and the reasons that are long or of more than one of them, which the rows name as (1), (2), ..."""
    counts = Counter(row[4] for row in rows)
    notes = [reason for reason, count in counts.items() if reason and (count > 1 or len(reason) > LONG)]
    names = {reason: f"({index})" for index, reason in enumerate(notes, 1)}
    return [[*row[:4], names.get(row[4], row[4])] for row in rows], notes


def as_text(rows: Sequence[Row], summary: str) -> str:
    """Aligned columns, the shared reasons, the summary."""
    cells, notes = with_notes(rows)
    lines = [list(COLUMNS), *cells]
    widths = [*(max(len(line[i]) for line in lines) for i in range(4)), 0]
    body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*body, *(f"({index}) {note}" for index, note in enumerate(notes, 1)), summary])


def as_html(rows: Sequence[Row], summary: str) -> str:
    """The same as a table that a notebook shows."""
    cells, notes = with_notes(rows)

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    body = "\n".join(line("td", row) for row in cells)
    under = "".join(f"<br>({index}) {html.escape(note)}" for index, note in enumerate(notes, 1))
    return (
        f"<table>\n<thead>{line('th', COLUMNS)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        f"<p>{html.escape(summary)}{under}</p>"
    )
