"""Who records this thread's launches, if anybody does: launchers tell it, :mod:`effnet_fast.replay` listens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

_local = threading.local()


def recorder() -> Any:
    """The :class:`effnet_fast.replay.record.Recorder` of this thread, or ``None``."""
    return getattr(_local, "recorder", None)


@contextmanager
def recording(witness: Any) -> Iterator[None]:
    """Within the block ``witness`` is this thread's recorder."""
    _local.recorder = witness
    try:
        with witness:
            yield
    finally:
        _local.recorder = None


def unseen() -> AbstractContextManager[None]:
    """Within the block calls to PyTorch are not recorded: a launcher's own, which it repeats itself."""
    witness = recorder()
    return nullcontext() if witness is None else witness.blind()
