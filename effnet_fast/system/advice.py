"""One word per process where kernels are missing: otherwise everything works, at PyTorch's speed, and nobody learns why."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from .. import build, dispatch
from ..backend import native

PACKAGE = str(Path(__file__).resolve().parent.parent)
_said = False


def said() -> None:
    """Nothing more is to be said in this process."""
    global _said
    _said = True


def warn(text: str) -> None:
    """A warning that points at the line outside this package from which it was reached."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def mention_missing_kernels(gpu: bool = True) -> None:
    """Warn, once per process, if the kernels for this machine are not built; nothing where the user chose the backends.

    Args:
        gpu: whether what the user does can run on a GPU too.
    """
    if _said or dispatch.chosen_by_user():
        return
    wanted = [("CPU", "_ops")]
    if gpu and torch.version.cuda is not None and build.driver_present():
        wanted.append(("CUDA", "_cuda"))
    missing = {name: state for name, product in wanted if not (state := native.status(product)).loaded}
    said()
    if missing:
        state = next(iter(missing.values()))
        instead = "PyTorch's own modules run" if "CPU" in missing else "Triton's run"
        remedy = f": `{state.fix}` compiles them" if state.fix else ""
        warn(
            f"effnet_fast: the {' and '.join(missing)} kernels are missing ({state.reason}), and {instead} in "
            f"their place{remedy}"
        )
