"""A Python process on the fake device, which runs functions of modules in this folder and brings back what they did.

The process is another because the device is preloaded, and stays for many jobs because importing torch takes seconds.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from .build import ROOT, build
from .log import Log, parse

_CHILD = Path(__file__).with_name("child.py")


class Run(NamedTuple):
    """A job's result and log; ``parts`` is the log by the job's marks."""

    value: Any
    parts: dict[str, Log]

    @property
    def log(self) -> Log:
        """The whole log, marks ignored."""
        return Log(*(list(chain.from_iterable(kind)) for kind in zip(*self.parts.values(), strict=True)))


class JobError(Exception):
    """A job raised; the text is its traceback and what the device has to say."""


class Device:
    """The process, as a context manager.

    Args:
        devices: how many GPUs it sees.
        capability: their compute capability, 75, 80 or 90.
        environment: further variables.
    """

    def __init__(self, devices: int = 1, capability: int = 90, **environment: str) -> None:
        library = build()
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        self._log.touch()
        self._read = 0
        self._errors = open(Path(self._folder.name) / "stderr", "w+")  # noqa: SIM115 (lives as long as the process)
        variables = {
            "LD_PRELOAD": str(library),
            "LD_LIBRARY_PATH": str(library.parent),
            "TRITON_LIBCUDA_PATH": str(library.parent),
            "FAKE_CUDA_LIBRARY": str(library),
            "FAKE_CUDA_LOG": str(self._log),
            "FAKE_CUDA_DEVICES": str(devices),
            "FAKE_CUDA_CAPABILITY": str(capability),
            # Threads of one: host time is then this process's CPU time.
            "OMP_NUM_THREADS": "1",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
            "TRITON_CACHE_DIR": str(ROOT / "build" / "fake_cuda" / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "fake_cuda" / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            **environment,
        }
        dropped = ("CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "EFFNET_FAST_BACKEND")
        inherited = {key: value for key, value in os.environ.items() if key not in dropped}
        self._process = subprocess.Popen(
            [sys.executable, str(_CHILD)],
            env=inherited | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def run(self, job: str, *arguments: Any, **named: Any) -> Run:
        """Call a function of a module of this folder there, "module.function".

        Raises:
            JobError: it raised.
            RuntimeError: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((*job.split("."), arguments, named), self._process.stdin)
            self._process.stdin.flush()
            failed, value = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"the process on the fake device ended: {self._last_words()}") from error
        with self._log.open() as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        run = Run(value, parse(lines))
        if failed:
            raise JobError("\n".join([value, *run.log.violations]))
        return run

    def _last_words(self) -> str:
        self._process.wait(60)
        self._errors.seek(0)
        return f"exit status {self._process.returncode}\n{self._errors.read()[-4000:]}"

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
