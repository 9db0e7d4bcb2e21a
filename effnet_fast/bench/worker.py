"""The process that measures one provider; :mod:`.sweep` starts it and talks to it over a pipe.

Messages are dicts with a key ``do``: ``reference``, ``prepare``, ``measure``, ``release``, ``rates``. Every answer is a dict with
``status``: ``ok``, ``out of memory``, ``unavailable`` or ``error``, the latter with a ``reason``.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..errors import EffnetFastError
from . import accuracy, memory, timing
from .providers import PROVIDERS, Prepared
from .targets import DTYPES, Job, images, stock_model


class Worker:
    """One provider on one device."""

    def __init__(self, provider: str, device: str) -> None:
        self.provider, self.device = provider, torch.device(device)
        self.clock = timing.Clock(self.device)
        self.prepared: Prepared | None = None
        torch.zeros(1, dtype=torch.float32, device=self.device)
        self.memory_before = memory.used_mb(self.device)

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what a message asks for; never raises for what a provider may run into."""
        try:
            return {"status": "ok", **getattr(self, "do_" + message.pop("do"))(**message)}
        except EffnetFastError as error:
            failure = {"status": "unavailable", "reason": _one_line(error)}
        except (MemoryError, RuntimeError) as error:
            status = "out of memory" if _is_memory(error) else "error"
            failure = {"status": status, "reason": _one_line(error)}
        except Exception as error:
            # Other runtimes raise what they like; a provider that fails must not end the sweep.
            failure = {"status": "error", "reason": f"{type(error).__name__}: {_one_line(error)}"}
        self.do_release()
        return failure

    def do_reference(self, job: list[Any], path: str) -> dict[str, Any]:
        """Make a job's weights and its results in fp64 once, for all providers, into a file."""
        task = Job(*job)
        _set_precision(task)
        model = stock_model(task, self.device)
        # The truth converts the model to fp64 in place.
        state = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
        truth = accuracy.truth(model, images(task, torch.device("cpu")), self.device, task)
        torch.save({"state": state, "truth": truth}, path)
        del model
        return self.do_release()

    def do_prepare(self, job: list[Any], path: str) -> dict[str, Any]:
        """Build, warm up and check a job, whose reference is in a file."""
        task = Job(*job)
        _set_precision(task)
        # The buffer that flushes caches is there before: it does not count.
        self.clock.run(lambda: None)
        before = self._used_mb()
        reference = torch.load(path)
        model = stock_model(task, self.device, reference.pop("state"))
        x = images(task, torch.device("cpu"))
        memory.reset_peak(self.device)
        self.prepared = PROVIDERS[self.provider](model, x.to(self.device), task)
        del model
        self._settle()
        one = timing.warm_up(self.prepared.step, self.clock)
        peak = memory.peak_mb(self.device) - before
        error = accuracy.max_error(self.prepared, reference["truth"], x, self.device, task)
        return {"max_error": error, "peak_memory_mb": max(0.0, peak), "call_seconds": one}

    def _settle(self) -> None:
        """On the CPU the peak is that of running: what only preparing and compiling needed is given back first."""
        if self.device.type != "cpu" or self.prepared is None:
            return
        for _ in range(2):
            self.prepared.step()
        gc.collect()
        memory.return_unused()
        memory.reset_peak(self.device)

    def do_measure(self, seconds: float) -> dict[str, Any]:
        """Times of single calls, in seconds."""
        assert self.prepared is not None
        return {"seconds": timing.sample(self.prepared.step, self.clock, seconds)}

    def do_release(self) -> dict[str, Any]:
        """Forget the job and its memory."""
        self.prepared = None
        # Otherwise resetting would import the compiler first.
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        memory.return_unused()
        return {}

    def do_rates(self, dtype: str) -> dict[str, Any]:
        """What this device reaches: copying, and matrix products."""
        kind = DTYPES[dtype][0]
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "device_name": name,
            "copy_bytes_per_second": timing.copy_bandwidth(self.device),
            "matmul_flops": timing.matmul_rate(self.device, kind),
        }

    def _used_mb(self) -> float:
        """What is in use without a model; on the CPU since the process started, because allocators keep memory."""
        return memory.used_mb(self.device) if self.device.type == "cuda" else self.memory_before


def _set_precision(job: Job) -> None:
    tf32 = DTYPES[job.dtype][1]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def _is_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def main() -> None:
    provider, device, handle = sys.argv[1:]
    # A worker stopped while others measure would outlive a parent that was killed.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    connection = Connection(int(handle))
    # Only messages may reach the parent; what libraries print goes to stderr.
    os.dup2(2, 1)
    worker = Worker(provider, device)
    connection.send({"status": "ok"})
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        connection.send(worker.answer(message))


if __name__ == "__main__":
    main()
