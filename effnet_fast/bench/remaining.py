"""How long a sweep will still take: every step has an expected time, corrected by the steps that are done.

A step is work that depends on the machine (starting a process, compiling) and calls of the model. What the expected times of
the former, those of an idle 2-core machine, are wrong by shows in the first steps; how long a call takes is measured when a
provider is prepared, and taken from its likes before. Until the first call has been timed no number is said.
"""

from __future__ import annotations

import functools
import glob
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import NamedTuple

from ..models import summarize
from . import targets
from .targets import Job
from .timing import calls_in

#: Seconds until a process has imported everything and made its model.
START = 5.0
#: More seconds to prepare B0: the geometric mean of the first time and of later ones, for which compilers keep results.
COMPILING = {
    "compile": 20.0,
    "compile-max-autotune": 17.0,
    "inductor": 17.0,
    "inductor-channels-last": 17.0,
    "effnet-fast-compile": 9.0,
    "onnxruntime": 10.0,
    "openvino": 10.0,
    "tensorrt": 30.0,
}
#: How much longer compilers take that have kept nothing yet.
COLD = 2.2
#: Seconds of a call over those of PyTorch's own, roughly; of the others, whatever compiles, three quarters.
CALLS = {
    "eager": 1.0,
    "eager-channels-last": 1.0,
    "onnxruntime": 0.5,
    "openvino": 0.5,
    "effnet-fast": 0.5,
    "effnet-fast-optimize": 0.35,
}
#: Operations per second of a whole network in PyTorch, roughly.
SPEED = {"cpu": 5e10, "cuda": 1e13}
#: Seconds of expected work that the correction begins with, as if they had taken what was expected.
TRUST = 1.0


class Step(NamedTuple):
    """One question to one process."""

    kind: str  # rates, reference, prepare, measure
    job: Job | None
    provider: str


class Work(NamedTuple):
    """What is expected of a step."""

    own: float  # seconds that are up to the machine
    calls: (
        float  # calls of the provider beside; of a turn of measuring they follow from the seconds asked for
    )
    one: float  # seconds of a call


class Remaining:
    """The steps of a sweep that are to be done, and what those that are done say about them.

    Args:
        expect: what is expected of a step.
        turn: seconds asked for in a turn of measuring.
        limit: seconds after which nothing new begins.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        expect: Callable[[Step], Work],
        turn: float,
        clock: Callable[[], float] = time.monotonic,
        limit: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._expected = {step: expect(step) for step in dict.fromkeys(steps)}
        self._todo = list(steps)
        self._done: list[tuple[Step, float]] = []
        self._calls: dict[tuple[Job, str], float] = {}
        # Logarithms of what calls took over what was expected.
        self._wrong: dict[tuple[str, ...], list[float]] = {}
        self._turn, self._clock, self._limit = turn, clock, limit
        self._running: tuple[Step, float] | None = None

    @property
    def known(self) -> bool:
        """Whether a call has been timed, or nothing is left to wait for."""
        return bool(self._calls) or not any(step.kind in ("prepare", "measure") for step in self._todo)

    def learn(self, job: Job, provider: str, call: float) -> None:
        """A prepared provider takes ``call`` seconds for one call."""
        self._calls[job, provider] = call
        wrong = math.log(max(call, 1e-9) / self._expected[Step("prepare", job, provider)].one)
        for key in _likes(job, provider):
            self._wrong.setdefault(key, []).append(wrong)

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
        ratios = self._ratios()
        left = {step: self._corrected(step, ratios) for step in dict.fromkeys(todo)}
        total = sum(left[step] for step in todo)
        if running is not None and running[0] in left:
            step, began = running
            passed = self._clock() - began
            # What takes longer than expected has taught so much: it may go on for a fifth of the time that it took.
            total += max(left[step] - passed, passed / 5) - left[step]
        return max(0.0, min(total, self._limit()))

    def share(self) -> float:
        """How much of the time has passed, from 0 to 1."""
        running = self._running
        passed = sum(seconds for _, seconds in list(self._done))
        if running is not None:
            passed += self._clock() - running[1]
        left = self.seconds()
        return passed / (passed + left) if passed + left else 1.0

    def _ratios(self) -> dict[tuple[str, str] | None, float]:
        """What the steps' own work took over what was expected: by kind and provider, and (``None``) of all."""
        sums: dict[tuple[str, str] | None, list[float]] = {None: [TRUST, TRUST]}
        for step, seconds in list(self._done):
            work = self._expected[step]
            if work.own:
                took = max(0.0, seconds - work.calls * self._call(step))
                for key in (None, (step.kind, step.provider)):
                    pair = sums.setdefault(key, [0.0, 0.0])
                    pair[0] += took
                    pair[1] += work.own
        return {key: took / expected for key, (took, expected) in sums.items()}

    def _corrected(self, step: Step, ratios: dict[tuple[str, str] | None, float]) -> float:
        """The seconds of a step as far as they are known."""
        if step.kind == "measure":
            one = self._call(step)
            return one * calls_in(one, self._turn)
        work = self._expected[step]
        ratio = ratios.get((step.kind, step.provider), ratios[None])
        return work.own * ratio + work.calls * self._call(step)

    def _call(self, step: Step) -> float:
        """Seconds of a call: as measured, else as expected, times what those most like it are wrong by."""
        one = self._expected[step].one
        if step.job is None or (step.job, step.provider) in self._calls:
            return self._calls[step.job, step.provider] if step.job else one
        like = next(
            (self._wrong[key] for key in _likes(step.job, step.provider) if key in self._wrong), [0.0]
        )
        return one * math.exp(fmean(like))


def _likes(job: Job, provider: str) -> list[tuple[str, ...]]:
    """What calls have in common, most first."""
    return [(job.dtype, job.mode, provider), (job.dtype, job.mode), (provider,), ()]


def crowd() -> float:
    """How many processes share a core of this machine, if one more is started now."""
    return max(1.0, (os.getloadavg()[0] + 1) / (os.cpu_count() or 1))


def cold() -> bool:
    """Whether PyTorch's compiler has kept nothing on this machine yet."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return not (
        os.path.isdir(named) if named else glob.glob(os.path.join(tempfile.gettempdir(), "torchinductor_*"))
    )


@functools.cache
def _network(model: str, resolution: int) -> tuple[float, float]:
    """Multiply-adds, and size as compilers see it, B0's being 1; a network that is not known is taken for B0."""
    summary = summarize(targets.parse(model)[2] or "b0", resolution)
    return summary.multiply_adds, sum(stage.repeats for stage in summary.stages) / 20


def expectation(device: str, sharing: float = 1.0, cold: bool = False) -> Callable[[Step], Work]:
    """What :class:`Remaining` expects of a step.

    Args:
        sharing: how many share a core, 1 on an idle machine.
        cold: compilers have kept nothing.
    """

    def expect(step: Step) -> Work:
        if step.job is None:
            return Work(sharing * (START + 2.0), 0, 0.0)
        job = step.job
        multiply_adds, size = _network(job.model, job.resolution)
        one = sharing * 2 * multiply_adds * job.batch * (3 if job.mode == "train" else 1) / SPEED[device]
        if step.kind == "reference":
            return Work(sharing * size + 20 * one, 0, one)
        one *= CALLS.get(step.provider, 0.75)
        if step.kind == "prepare":
            compiling = size * COMPILING.get(step.provider, 1.0) * (COLD if cold else 1.0)
            return Work(sharing * (START + compiling), 8, one)
        return Work(0.0, 0, one)

    return expect
