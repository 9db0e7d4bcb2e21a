"""Ctrl-C, and the signal by which schedulers end a job, stop a run between two steps, where it can be resumed."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """Remembers that a signal came; the second one ends the process at once."""

    def __init__(self) -> None:
        self.came = False
        # Of another process of the run, if none came here.
        self.kind = int(signal.SIGINT)
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, self._handle)

    def _handle(self, kind: int, frame: FrameType | None) -> None:
        self.came, self.kind = True, kind
        signal.signal(kind, signal.SIG_DFL)
