"""Runs a compiler's command with its output in a log, and shows how far it is."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .toolchain import MissingTool

#: Seconds between two lines where the output is not a terminal (a log, pip -v, a Dockerfile).
PAUSE = 10.0


class Progress:
    """One line, rewritten on a terminal and repeated now and then elsewhere: ``_ops: 12 of 40 files, 21 s``."""

    def __init__(self, product: str) -> None:
        self._product = product
        self._terminal = sys.stdout.isatty()
        self._began = self._spoke = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def heard(self, line: str) -> None:
        """Look at a line of the build's output; ninja begins those that count with ``[done/total]``."""
        step = re.match(r"\[(\d+)/(\d+)\] ", line)
        if step is None or (not self._terminal and time.monotonic() - self._spoke < PAUSE):
            return
        self._spoke = time.monotonic()
        text = f"  {self._product}: {step[1]} of {step[2]} files, {self.seconds:.0f} s"
        print(f"\r{text}" if self._terminal else text, end="" if self._terminal else "\n", flush=True)

    def close(self) -> None:
        """Clear the line of a terminal."""
        if self._terminal:
            print("\r\033[K", end="", flush=True)


def run(command: Sequence[str], log: Path, verbose: bool, progress: Progress) -> None:
    """Run, keep the output in ``log``.

    Raises:
        MissingTool: it failed; the reason is the first line that speaks of an error.
    """
    first = last = ""
    with log.open("a") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                out.write(line)
                if verbose:
                    print(line, end="", flush=True)
                else:
                    progress.heard(line)
                last = line.strip() or last
                if not first and re.search(r"\berror\b", line, re.IGNORECASE):
                    first = line.strip()
    if process.returncode:
        why = first or last or "no output"
        raise MissingTool(f"build failed: {why} (all of it: {log})", f"see {log}")
