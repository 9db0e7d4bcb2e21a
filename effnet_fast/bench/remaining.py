"""How long a sweep will still take: every step has an expected time, corrected by the steps that are done.

The expected times are those of an idle 2-core machine, as far as they are not given (a turn of measuring takes the seconds
that were asked for). What they are wrong by, on another machine or a busy one, shows in the first steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ..models import summarize
from . import targets
from .targets import Job

#: Seconds until a process has imported everything and made its model.
START = 5.0
#: More seconds to prepare B0. Compilers keep results for later runs: the first takes two to three times as long as this,
#: the next half of it.
COMPILING = {
    "compile": 18.0,
    "compile-max-autotune": 15.0,
    "inductor": 15.0,
    "inductor-channels-last": 15.0,
    "effnet-fast-compile": 8.0,
    "onnxruntime": 10.0,
    "openvino": 10.0,
    "tensorrt": 30.0,
}
#: Operations per second of a whole network in PyTorch, roughly.
SPEED = {"cpu": 5e10, "cuda": 1e13}
#: Seconds of expected work that the correction begins with, as if they had taken what was expected.
TRUST = 4.0


class Step(NamedTuple):
    """One question to one process."""

    kind: str  # rates, reference, prepare, measure
    job: Job | None
    provider: str


class Remaining:
    """The steps of a sweep that are to be done, and what those that are done say about them."""

    def __init__(
        self,
        steps: Sequence[Step],
        expect: Callable[[Step], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected = {step: expect(step) for step in dict.fromkeys(steps)}
        self._todo = list(steps)
        self._done: list[tuple[Step, float]] = []
        self._clock = clock
        self._running: tuple[Step, float] | None = None

    @contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Around the work of a step. A step that was not foreseen changes nothing."""
        began = self._clock()
        self._running = (step, began)
        try:
            yield
        finally:
            self._running = None
            if step in self._todo:
                self._todo.remove(step)
                self._done.append((step, self._clock() - began))

    def skip(self, job: Job, provider: str) -> None:
        """The provider failed: nothing of this job is left for it."""
        self._todo = [step for step in self._todo if (step.job, step.provider) != (job, provider)]

    def seconds(self) -> float:
        """Seconds until everything is done."""
        # Another thread shows it, while this one goes on.
        todo, running = list(self._todo), self._running
        left = {step: self._corrected(step) for step in dict.fromkeys(todo)}
        total = sum(left[step] for step in todo)
        if running is not None and running[0] in left:
            step, began = running
            # A step that takes longer than expected will end some time: soon.
            total -= min(self._clock() - began, 0.9 * left[step])
        return total

    def share(self) -> float:
        """How much of the time has passed, from 0 to 1."""
        running = self._running
        passed = sum(seconds for _, seconds in list(self._done))
        if running is not None:
            passed += self._clock() - running[1]
        left = self.seconds()
        return passed / (passed + left) if passed + left else 1.0

    def _corrected(self, step: Step) -> float:
        """The expected time, times what like steps took over what was expected of them."""
        same = [(done, took) for done, took in self._done if done[::2] == step[::2]]
        # Measuring takes the seconds that were asked for; how long everything else takes is up to the machine.
        like = same or [
            (done, took) for done, took in self._done if (done.kind == "measure") == (step.kind == "measure")
        ]
        trust = 0.0 if same else TRUST
        expected = trust + sum(self._expected[done] for done, _ in like)
        return self._expected[step] * (trust + sum(took for _, took in like)) / expected if expected else 0.0


def crowd() -> float:
    """How many processes share a core of this machine, if one more is started now."""
    return max(1.0, (os.getloadavg()[0] + 1) / (os.cpu_count() or 1))


def expectation(device: str, seconds: float, sharing: float = 1.0) -> Callable[[Step], float]:
    """What :class:`Remaining` expects of a step.

    Args:
        seconds: of a turn of measuring.
        sharing: how many share a core, 1 on an idle machine.
    """
    calls: dict[Job, float] = {}
    sizes: dict[Job, float] = {}

    def call(job: Job) -> float:
        """Seconds of one call."""
        if job not in calls:
            member = targets.parse(job.model)[2]
            summary = summarize(member or "b0", job.resolution)
            sizes[job] = sum(stage.repeats for stage in summary.stages) / 20
            training = 3 if job.mode == "train" else 1
            calls[job] = sharing * 2 * summary.multiply_adds * job.batch * training / SPEED[device]
        return calls[job]

    def expect(step: Step) -> float:
        if step.job is None:
            return sharing * (START + 2.0)
        one = call(step.job)
        if step.kind == "reference":
            return sharing * sizes[step.job] + 20 * one
        if step.kind == "prepare":
            return sharing * (START + sizes[step.job] * COMPILING.get(step.provider, 1.0)) + 6 * one
        return max(seconds + one, 4 * one)

    return expect
