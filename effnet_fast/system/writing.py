"""Files and folders that a command is told to write: known to be writable before the work is done, and written whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..build import whole_file
from ..errors import EffnetFastError


def check_file(path: Path, command: str) -> None:
    """That a file can be written there; what is there stays. Folders above it are made.

    Raises:
        EffnetFastError: it cannot be written; the sentence begins with ``command``.
    """
    with telling(path, command):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(path):
            return
        probe = path.resolve().with_name(path.name + ".part")
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


def check_folder(path: Path, command: str) -> None:
    """That files can be written into a folder, which is made if it is not there.

    Raises:
        EffnetFastError: they cannot; the sentence begins with ``command``.
    """
    with telling(path, command):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def replacing(path: Path, command: str) -> Iterator[TextIO]:
    """A file that takes the place of ``path`` when all of it is written: a reader never sees half.

    Raises:
        EffnetFastError: it cannot be written; the sentence begins with ``command``.
    """
    with replaced_by(path, command) as partial, partial.open("w", newline="") as file:
        yield file


@contextmanager
def replaced_by(path: Path, command: str) -> Iterator[Path]:
    """The name of a file to be written, which takes the place of ``path`` when that is done.

    Raises:
        EffnetFastError: it cannot be written; the sentence begins with ``command``.
    """
    with telling(path, command):
        # Nothing may take the place of /dev/stdout.
        if _is_special(path):
            yield path
            return
        # A link stays, and leads to the new file.
        with whole_file.replacing(path.resolve()) as partial:
            yield partial


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


@contextmanager
def telling(path: Path, command: str) -> Iterator[None]:
    """Errors of the system, inside, become the sentence.

    Raises:
        EffnetFastError: ``command: cannot write path: reason``.
    """
    try:
        yield
    except OSError as error:
        raise EffnetFastError(f"{command}: cannot write {path}: {error.strerror}") from error
