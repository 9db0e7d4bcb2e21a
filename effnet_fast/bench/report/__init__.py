"""Drawing what was measured: a page (:mod:`.page`), figures for a README (:mod:`.figures`), a table of text."""

from .data import Device, Duel, duels, load
from .page import render

__all__ = ["Device", "Duel", "duels", "load", "render"]
