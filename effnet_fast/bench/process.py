"""One provider's process, from the outside: asked, stopped while others measure, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from typing import Any

#: A worker that says nothing for so long is given up: compiling a large model takes minutes, nothing takes longer.
PATIENCE = 900.0


class Process:
    """One provider's process, from the outside."""

    def __init__(self, provider: str, device: str) -> None:
        self.provider, self.device = provider, device
        self._process: subprocess.Popen[bytes] | None = None
        self._greeted = False

    def ask(self, patience: float = PATIENCE, **message: Any) -> dict[str, Any]:
        """Send a message and wait for the answer; a process that died or hangs is an answer too."""
        self.start()
        self._signal(signal.SIGCONT)
        try:
            self._pipe.send(message)
            if not self._greeted:
                # Its first words: it has imported everything and reached the device.
                self._greeted = self._pipe.poll(PATIENCE) and bool(self._pipe.recv())
            if self._pipe.poll(patience):
                return self._pipe.recv()
            status, reason = "no answer", f"within {patience:.0f} s"
        except (EOFError, OSError):
            status, reason = "error", self._last_words()
        self.close()
        return {"status": status, "reason": reason}

    def pause(self) -> None:
        """Let it use no processor until it is asked again."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it; a later question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()
            self._errors.close()
            self._process = None

    def start(self) -> None:
        """Start it, if it does not run, without waiting until it is ready."""
        if self._process is not None:
            return
        ours, theirs = Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        command = [sys.executable, "-m", "effnet_fast.bench.worker", self.provider, self.device]
        # A session of its own: Ctrl-C is for the sweep, which then ends its workers.
        self._process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )
        theirs.close()
        self._pipe, self._greeted = ours, False

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _last_words(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        ended = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"the process ended ({ended}): {lines[-1][:200] if lines else 'no message'}"
