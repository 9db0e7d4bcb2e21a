"""Pieces of HTML that every part of the page is made of; text in, escaped HTML out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .data import Duel
from .style import style_of


def job_name(key: tuple[Any, ...]) -> str:
    """``b0, infer, batch 1, 224 px, fp32``."""
    model, mode, batch, resolution, dtype = key
    return f"{model}, {mode}, batch {batch}, {resolution} px, {dtype}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table of cells that are HTML already.

    Args:
        columns: the headings, as text.
        rows: as many cells as there are columns.
        words: the columns that hold words: aligned to the left, their lines may wrap. The others hold numbers.
    """
    kinds = ['class="words"' if index in words else "" for index in range(len(columns))]

    def line(tag: str, cells: Sequence[str]) -> str:
        row = (f"<{tag} {kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return "".join(row).replace(" >", ">")

    head = line("th", [escape(column) for column in columns])
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(title: str, chart: str, legend: Sequence[str] = (), line: str = "") -> str:
    """``line``: what a dashed line in the chart stands for."""
    keys = [f'<li><i class="{style_of(name)}"></i>{escape(name)}</li>' for name in legend]
    keys += [f'<li><i class="dashed"></i>{escape(line)}</li>'] if line else []
    keyed = f"<ul>{''.join(keys)}</ul>" if keys else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}{keyed}</figure>"


def grid(title: str, figures: Sequence[str], note: str = "") -> str:
    if not figures:
        return ""
    more = f'<p class="muted">{escape(note)}</p>' if note else ""
    return f'<h3>{escape(title)}</h3>{more}<div class="grid">{"".join(figures)}</div>'


def ratio(duel: Duel) -> str:
    """The speed-up as HTML, marked as a win, a loss, or neither."""
    kind = "win" if duel.speedup > 1.02 else "loss" if duel.speedup < 0.98 else "tie"
    return f'<b class="{kind}">{duel.speedup:.2f}&times;</b>'


def scientific(value: float) -> str:
    """Such as ``1.3e-6``."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
