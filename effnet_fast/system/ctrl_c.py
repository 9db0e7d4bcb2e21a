"""Ctrl-C in the command ``effnet-fast``: exit code 130 and one line, from its first import to its end.

A KeyboardInterrupt does not do: importing torch takes seconds, and what rises there is a traceback, or is lost in one of the
many places that catch everything. So the process ends where it stands, except inside :func:`raising`, where something is kept.
Where the package is a library nothing of this happens. Only the standard library: this is imported first of all.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: What ends with it, in one word.
EXIT_CODE = 130
MESSAGE = "effnet-fast: interrupted"

_raises = False


def settle() -> None:
    """Called before anything heavy is imported; takes Ctrl-C over if this process is the command.

    A process that ignores Ctrl-C, as one in the background of a script does, goes on ignoring it.
    """
    if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, _interrupted)


def _is_the_command() -> bool:
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    # While Python looks for the module of -m, its name is not yet in argv.
    return program == "effnet-fast" or (program == "-m" and "effnet_fast" in sys.orig_argv)


@contextmanager
def raising() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt inside, for what has something to keep; a second one ends the process."""
    global _raises
    _raises = True
    try:
        yield
    finally:
        _raises = False


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _raises
    if _raises:
        _raises = False
        raise KeyboardInterrupt
    # A bar of rich has hidden the cursor, and stands in the line.
    restored = "\r\033[K\033[?25h" if os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb" else ""
    with suppress(OSError):
        os.write(2, f"{restored}{MESSAGE}\n".encode())
    os._exit(EXIT_CODE)
