"""Laying out a table in a given width: columns that matter less are left out, then the rest is folded into pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

GAP = "  "


class Layout(NamedTuple):
    """What fits: pieces of columns, by number, and the names of those left out."""

    pieces: list[list[int]]
    left_out: list[str]


def is_number(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in "-+" and cell[1:2].isdigit())


def layout(
    columns: Sequence[str], widths: Sequence[int], room: int | None, minor: Sequence[Sequence[str]]
) -> Layout:
    """Which columns to show, and in how many pieces.

    Args:
        widths: of the columns, in characters.
        room: characters of a line; ``None``: any number.
        minor: groups of columns to leave out, the first that matters least, until the table fits.
    """
    kept = list(range(len(columns)))
    left_out: list[str] = []

    def fits(numbers: Sequence[int]) -> bool:
        return room is None or sum(widths[i] + len(GAP) for i in numbers) - len(GAP) <= room

    for group in minor:
        if fits(kept):
            break
        left_out += [columns[i] for i in kept if columns[i] in group]
        kept = [i for i in kept if columns[i] not in group]
    # The first column says what a row is about: every piece begins with it.
    pieces = [kept[:1]]
    for number in kept[1:]:
        if len(pieces[-1]) > 1 and not fits([*pieces[-1], number]):
            pieces.append(kept[:1])
        pieces[-1].append(number)
    return Layout(pieces, left_out)


def shortened(cell: str, width: int) -> str:
    """The end of a cell that is too long: of a path it says the most."""
    return cell if len(cell) <= width else "..." + cell[len(cell) - width + 3 :]


def lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], piece: Sequence[int]
) -> list[str]:
    """One piece: its header and its rows, numbers to the right."""
    right = [
        any(row[i] for row in rows) and all(is_number(row[i]) for row in rows if row[i])
        for i in range(len(columns))
    ]
    return [
        GAP.join(row[i].rjust(widths[i]) if right[i] else row[i].ljust(widths[i]) for i in piece).rstrip()
        for row in (columns, *rows)
    ]
