"""Running a sweep: one process per provider, the providers in turn, several rounds.

Thread pools of two runtimes that spin in one process disturb each other; even two processes do, so on the CPU all
but the one at work are stopped. On CUDA a provider does all its rounds and frees its memory before the next
begins, because two large models may not fit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from typing import Any, NamedTuple

from ..errors import EffnetFastError
from . import blocks, designs, results, roofline, targets
from .stats import summarize
from .targets import DTYPES, Job

#: A worker that says nothing for so long is given up: compiling a large model takes minutes, nothing takes longer.
PATIENCE = 900.0


class Plan(NamedTuple):
    """What to measure, and how long."""

    jobs: list[Job]
    providers: list[str]
    device: str
    rounds: int = 3
    seconds: float = 1.0  # of timing per round
    budget: float | None = None  # seconds for everything


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
            reason = f"no answer within {patience:.0f} s"
        except (EOFError, OSError):
            reason = self._last_words()
        self.close()
        return {"status": "error", "reason": reason}

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


class Sweep:
    """The state of a run; what it has measured is in :attr:`data` at any time, also after Ctrl-C."""

    def __init__(self, plan: Plan, earlier: Sequence[results.Row] = ()) -> None:
        """``earlier``: rows to keep, except where they are measured again."""
        again = {(*job, provider) for job in plan.jobs for provider in plan.providers}
        self.plan = plan
        self.rows = [row for row in earlier if tuple(row[name] for name in results.KEY) not in again]
        self._kept = len(self.rows)
        self.data: dict[str, Any] = {"environment": results.facts(plan.device), "rows": self.rows}
        self.steps = len(plan.jobs) * len(plan.providers)
        self._rates: dict[str, roofline.Device] = {}
        self._deadline = time.monotonic() + plan.budget if plan.budget else float("inf")

    @property
    def fresh(self) -> list[results.Row]:
        """The rows of this run."""
        return self.rows[self._kept :]

    def run(self, finished: Callable[[results.Row], None]) -> None:
        """Measure everything; ``finished`` is called with each row."""
        with self._processes() as processes:
            for dtype in dict.fromkeys(job.dtype for job in self.plan.jobs):
                self._measure_rates(processes[0], dtype)
            for job in self.plan.jobs:
                measure = self._take_turns if self.plan.device == "cpu" else self._one_by_one
                measure(job, processes, finished)
                results.add_speedups(self.rows)

    @contextlib.contextmanager
    def _processes(self) -> Iterator[list[Process]]:
        processes = [Process(provider, self.plan.device) for provider in self.plan.providers]
        try:
            # On CUDA all at once, because importing torch takes seconds. On the CPU that would disturb the first.
            for process in processes if self.plan.device != "cpu" else ():
                process.start()
            yield processes
        finally:
            for process in processes:
                process.close()
            self.data["environment"]["load_after"] = round(os.getloadavg()[0], 1)

    def _measure_rates(self, process: Process, dtype: str) -> None:
        answer = process.ask(do="rates", dtype=dtype)
        if answer["status"] != "ok":
            return
        facts = self.data["environment"]
        facts["device_name"] = answer["device_name"] or facts["cpu"]
        facts["copy_gb_per_s"] = round(answer["copy_bytes_per_second"] / 1e9, 2)
        facts.setdefault("matmul_tflops", {})[dtype] = round(answer["matmul_flops"] / 1e12, 4)
        self._rates[dtype] = roofline.Device(answer["copy_bytes_per_second"], answer["matmul_flops"])

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _prepare(self, process: Process, job: Job) -> dict[str, Any]:
        if self._left() <= 0:
            return {"status": "skipped", "reason": "the time budget was used up", "samples": []}
        answer = process.ask(min(PATIENCE, max(self._left(), 1.0)), do="prepare", job=list(job))
        return {**answer, "samples": []}

    def _measure(self, process: Process, prepared: dict[str, Any]) -> None:
        if prepared["status"] == "ok":
            answer = process.ask(do="measure", seconds=self.plan.seconds)
            prepared["samples"] += answer.get("seconds", [])
            if answer["status"] != "ok":
                prepared.update(answer)

    def _take_turns(
        self, job: Job, processes: list[Process], finished: Callable[[results.Row], None]
    ) -> None:
        answers: list[dict[str, Any]] = []
        try:
            for process in processes:
                answers.append(self._prepare(process, job))
                process.pause()
            for _ in range(self.plan.rounds):
                for process, answer in zip(processes, answers, strict=True):
                    self._measure(process, answer)
                    process.pause()
        except KeyboardInterrupt:
            self._keep(job, processes, answers, finished)
            raise
        for process, answer in zip(processes, answers, strict=True):
            self._finish(process, job, answer, finished)
            # The next job starts another: what this one leaves behind would count as that one's memory.
            process.close()

    def _one_by_one(
        self, job: Job, processes: list[Process], finished: Callable[[results.Row], None]
    ) -> None:
        for process in processes:
            answer = self._prepare(process, job)
            try:
                for _ in range(self.plan.rounds):
                    self._measure(process, answer)
            except KeyboardInterrupt:
                self._keep(job, [process], [answer], finished)
                raise
            self._finish(process, job, answer, finished)

    def _keep(
        self,
        job: Job,
        processes: list[Process],
        answers: list[dict[str, Any]],
        finished: Callable[[results.Row], None],
    ) -> None:
        """Rows of what an interrupted job had measured."""
        for process, answer in zip(processes, answers, strict=False):
            if answer["samples"] or answer["status"] != "ok":
                self._add_row(job, process.provider, answer, finished)

    def _finish(
        self, process: Process, job: Job, answer: dict[str, Any], finished: Callable[[results.Row], None]
    ) -> None:
        if answer["status"] == "ok":
            process.ask(do="release")
        self._add_row(job, process.provider, answer, finished)

    def _add_row(
        self, job: Job, provider: str, answer: dict[str, Any], finished: Callable[[results.Row], None]
    ) -> None:
        row = make_row(job, provider, answer)
        if row["median_ms"] and job.dtype in self._rates:
            row["roofline"] = roofline_fraction(job, row["median_ms"], self._rates[job.dtype])
        self.rows.append(row)
        finished(row)


def make_row(job: Job, provider: str, answer: dict[str, Any]) -> results.Row:
    """A row of the JSON from a worker's answers; without samples its times are ``None``."""
    row: results.Row = {**job._asdict(), "provider": provider, "status": answer["status"]}
    if answer["status"] != "ok":
        row["reason"] = answer.get("reason", "")
    empty = dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "images_per_second"))
    row.update(empty, peak_memory_mb=None, max_error=None, speedup=None, roofline=None)
    samples = answer.get("samples") or []
    if answer["status"] == "ok" and samples:
        spread = summarize(samples)
        for name, value in spread._asdict().items():
            row[f"{name}_ms"] = round(value * 1e3, 5)
        row["images_per_second"] = round(job.batch / spread.median, 2)
        row["samples"] = len(samples)
        row["peak_memory_mb"] = round(answer["peak_memory_mb"], 1)
        row["max_error"] = answer["max_error"]
    return row


def roofline_fraction(job: Job, median_ms: float, device: roofline.Device) -> float | None:
    """Time the fused design needs at the measured rates, over the time taken; ``None`` for an unknown network."""
    member = targets.parse(job.model)[2]
    if member is None:
        return None
    launches = designs.DESIGNS["fused", job.mode](blocks.network(member, job.resolution))
    size = DTYPES[job.dtype][0].itemsize
    seconds = roofline.seconds_per_image(list(launches), device, job.batch, size)
    return seconds * job.batch * 1e3 / median_ms


def make_jobs(
    models: Sequence[str],
    modes: Sequence[str],
    batches: Sequence[int],
    resolutions: Sequence[int],
    dtypes: Sequence[str],
) -> list[Job]:
    """All combinations.

    Args:
        models: names, each with batch sizes of its own if it ends in ``@1,64``.
        resolutions: none: each model's own, or 224 where it is not known.

    Raises:
        EffnetFastError: a model or a batch size that is none.
    """
    jobs = []
    for entry in models:
        model, at, own = entry.partition("@")
        sizes = [int(part) if part.isdecimal() else 0 for part in own.split(",")] if at else list(batches)
        if 0 in sizes:
            raise EffnetFastError(f"bench: expected batch sizes such as 1,64 after @, got {entry!r}")
        for resolution in resolutions or [targets.parse(model)[1] or 224]:
            jobs += [
                Job(model, mode, batch, resolution, dtype)
                for dtype in dtypes
                for mode in modes
                for batch in sizes
            ]
    return jobs
