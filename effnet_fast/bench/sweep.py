"""Running a sweep: one process per provider, the providers in turn, several rounds.

Thread pools of two runtimes that spin in one process disturb each other; even two processes do, so on the CPU all
but the one at work are stopped. On CUDA a provider does all its rounds and frees its memory before the next
begins, because two large models may not fit.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import EffnetFastError
from . import blocks, designs, results, roofline, targets
from .process import PATIENCE, Process
from .remaining import Remaining, Step, cold, crowd, expectation
from .stats import summarize
from .targets import DTYPES, Job


class Plan(NamedTuple):
    """What to measure, and how long."""

    jobs: list[Job]
    providers: list[str]
    device: str
    rounds: int = 3
    seconds: float = 1.0  # of timing per round
    budget: float | None = None  # seconds for everything


class Sweep:
    """The state of a run; what it has measured is in :attr:`data` at any time, also after Ctrl-C."""

    def __init__(self, plan: Plan, earlier: Sequence[results.Row] = ()) -> None:
        """``earlier``: rows to keep, except where they are measured again."""
        again = {(*job, provider) for job in plan.jobs for provider in plan.providers}
        self.plan = plan
        self.rows = [row for row in earlier if tuple(row[name] for name in results.KEY) not in again]
        self._kept = len(self.rows)
        self.data: dict[str, Any] = {"environment": results.facts(plan.device), "rows": self.rows}
        self._rates: dict[str, roofline.Device] = {}
        self._deadline = time.monotonic() + plan.budget if plan.budget else float("inf")
        self._file = ""
        # Rates and references in a process of their own: what they leave behind would count as a provider's memory.
        self._referee = Process("eager", plan.device)
        self.remaining = Remaining(
            _steps(plan), expectation(plan.device, crowd(), cold()), plan.seconds, limit=self._left
        )

    @property
    def fresh(self) -> list[results.Row]:
        """The rows of this run."""
        return self.rows[self._kept :]

    def run(self, finished: Callable[[results.Row], None]) -> None:
        """Measure everything; ``finished`` is called with each row."""
        with (
            self._processes() as processes,
            tempfile.TemporaryDirectory(prefix="effnet-fast-bench-") as folder,
        ):
            self._file = os.path.join(folder, "reference.pt")
            for dtype in dict.fromkeys(job.dtype for job in self.plan.jobs):
                self._measure_rates(dtype)
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
            for process in (*processes, self._referee):
                process.close()
            self.data["environment"]["load_after"] = round(os.getloadavg()[0], 1)

    def _measure_rates(self, dtype: str) -> None:
        with self.remaining.timed(Step("rates", None, dtype)):
            answer = self._ask_in_time(self._referee, do="rates", dtype=dtype)
        if answer["status"] != "ok":
            return
        facts = self.data["environment"]
        facts["device_name"] = answer["device_name"] or facts["cpu"]
        facts["copy_gb_per_s"] = round(answer["copy_bytes_per_second"] / 1e9, 2)
        facts.setdefault("matmul_tflops", {})[dtype] = round(answer["matmul_flops"] / 1e12, 4)
        self._rates[dtype] = roofline.Device(answer["copy_bytes_per_second"], answer["matmul_flops"])

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _reference(self, job: Job) -> dict[str, Any]:
        """Weights and fp64 results, made once: for a large model they take longer than the timing."""
        with self.remaining.timed(Step("reference", job, "")):
            answer = self._ask_in_time(self._referee, do="reference", job=list(job), path=self._file)
        self._referee.pause()
        return answer

    def _prepare(self, process: Process, job: Job, reference: dict[str, Any]) -> dict[str, Any]:
        answer = reference
        if reference["status"] == "ok":
            with self.remaining.timed(Step("prepare", job, process.provider)):
                answer = self._ask_in_time(process, do="prepare", job=list(job), path=self._file)
        if answer["status"] == "ok":
            self.remaining.learn(job, process.provider, answer["call_seconds"])
        else:
            self.remaining.skip(job, process.provider)
        return {**answer, "samples": []}

    def _ask_in_time(self, process: Process, **message: Any) -> dict[str, Any]:
        if self._left() > 0:
            answer = process.ask(min(PATIENCE, max(self._left(), 1.0)), **message)
            if answer["status"] != "no answer" or self._left() > 0:
                return answer
        return {"status": "skipped", "reason": "the time budget was used up"}

    def _measure(self, process: Process, job: Job, prepared: dict[str, Any]) -> None:
        if prepared["status"] == "ok":
            with self.remaining.timed(Step("measure", job, process.provider)):
                answer = process.ask(do="measure", seconds=self.plan.seconds)
            prepared["samples"] += answer.get("seconds", [])
            if answer["status"] != "ok":
                prepared.update(answer)

    def _take_turns(
        self, job: Job, processes: list[Process], finished: Callable[[results.Row], None]
    ) -> None:
        answers: list[dict[str, Any]] = []
        try:
            reference = self._reference(job)
            for process in processes:
                answers.append(self._prepare(process, job, reference))
                process.pause()
            for index in range(self.plan.rounds):
                if index and self._left() <= 0:
                    break
                for process, answer in zip(processes, answers, strict=True):
                    self._measure(process, job, answer)
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
        reference = self._reference(job)
        for process in processes:
            answer = self._prepare(process, job, reference)
            try:
                for index in range(self.plan.rounds):
                    if index and self._left() <= 0:
                        break
                    self._measure(process, job, answer)
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


def _steps(plan: Plan) -> list[Step]:
    """Everything a sweep asks its processes, in any order."""
    steps = [Step("rates", None, dtype) for dtype in dict.fromkeys(job.dtype for job in plan.jobs)]
    for job in plan.jobs:
        steps.append(Step("reference", job, ""))
        for provider in plan.providers:
            steps += [Step("prepare", job, provider), *[Step("measure", job, provider)] * plan.rounds]
    return steps


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
