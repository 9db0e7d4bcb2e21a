"""Names of classes: the package's own list of ImageNet's, or a file of the user's."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from ..errors import EffnetFastError

_IMAGENET = Path(__file__).parent / "imagenet_classes.txt"


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012, in the order that ImageNet models give them."""
    lines = _IMAGENET.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """One name a line, in the order of the model's outputs; empty lines at the end are ignored.

    Raises:
        EffnetFastError: no such file, not text, or empty.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise EffnetFastError(f"labels: {path} cannot be read: {reason}") from None
    if not lines:
        raise EffnetFastError(f"labels: {path} is empty, expected one name a line")
    return tuple(line.strip() for line in lines)


def labels_for(classes: int, path: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Names for a model of ``classes`` outputs: the file's, ImageNet's where there are 1000, or "class 0", ...

    Raises:
        EffnetFastError: the file is unreadable or has another number of names.
    """
    if path is None:
        return imagenet_classes() if classes == 1000 else tuple(f"class {i}" for i in range(classes))
    names = read_labels(path)
    if len(names) != classes:
        raise EffnetFastError(
            f"labels: {path} has {len(names)} names, expected {classes}: the model's classes"
        )
    return names
