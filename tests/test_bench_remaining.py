"""The time that a sweep still takes: what is foreseen, and what the steps that are done teach."""

from __future__ import annotations

import io
import threading

import pytest

from effnet_fast.bench import sweep
from effnet_fast.bench.remaining import Remaining, Step, expectation
from effnet_fast.bench.targets import Job
from effnet_fast.cli import output

JOB = Job("b0", "infer", 1, 224, "fp32")
EXPECTED = {"rates": 5.0, "reference": 5.0, "prepare": 10.0, "measure": 1.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remaining(clock: Clock) -> Remaining:
    plan = sweep.Plan([JOB, JOB._replace(batch=8)], ["eager", "compile"], "cpu", rounds=3)
    return Remaining(sweep._steps(plan), lambda step: EXPECTED[step.kind], clock)


def pass_by(remaining: Remaining, clock: Clock, step: Step, seconds: float) -> None:
    with remaining.timed(step):
        clock.now += seconds


def test_at_first_what_is_expected(remaining: Remaining) -> None:
    # rates once; a reference a job; two providers a job, prepared once and measured three times.
    assert remaining.seconds() == 5 + 2 * 5 + 4 * (10 + 3)
    assert remaining.share() == 0


def test_a_slow_machine_is_noticed_at_once(remaining: Remaining, clock: Clock) -> None:
    """Everything but measuring takes three times as long: the estimate is true within a factor of two from then on."""
    true = 3 * (5 + 2 * 5 + 4 * 10) + 12
    assert remaining.seconds() < true / 2
    pass_by(remaining, clock, Step("rates", None, "fp32"), 15)
    pass_by(remaining, clock, Step("reference", JOB, ""), 15)
    assert true - 30 > remaining.seconds() > (true - 30) / 2
    for provider in ("eager", "compile"):
        pass_by(remaining, clock, Step("prepare", JOB, provider), 30)
        for _ in range(3):
            pass_by(remaining, clock, Step("measure", JOB, provider), 1)
    assert remaining.seconds() == pytest.approx(15 + 2 * 30 + 6, rel=0.15)


def test_a_provider_is_known_by_its_earlier_job(remaining: Remaining, clock: Clock) -> None:
    pass_by(remaining, clock, Step("prepare", JOB, "compile"), 100)
    known = remaining._corrected(Step("prepare", JOB._replace(batch=8), "compile"))
    assert known == 100 > remaining._corrected(Step("prepare", JOB, "eager"))


def test_while_a_step_runs_the_time_goes_down_and_never_below_nothing(
    remaining: Remaining, clock: Clock
) -> None:
    before = remaining.seconds()
    with remaining.timed(Step("rates", None, "fp32")):
        clock.now += 3
        assert remaining.seconds() == before - 3 and 0 < remaining.share() < 0.1
        clock.now += 1000
        assert remaining.seconds() >= before - 5


def test_what_fails_is_no_longer_waited_for(remaining: Remaining) -> None:
    before = remaining.seconds()
    remaining.skip(JOB, "compile")
    assert remaining.seconds() == before - 13


def test_unforeseen_steps_change_nothing(remaining: Remaining, clock: Clock) -> None:
    before = remaining.seconds()
    pass_by(remaining, clock, Step("measure", JOB, "other"), 50)
    assert remaining.seconds() == before


def test_expectation_grows_with_the_work() -> None:
    expect = expectation("cpu", 1.0)
    big = Job("b7", "train", 8, 600, "fp32")
    for kind in ("reference", "prepare", "measure"):
        assert expect(Step(kind, big, "eager")) > expect(Step(kind, JOB, "eager"))
    assert expect(Step("prepare", JOB, "compile")) > 2 * expect(Step("prepare", JOB, "eager"))
    assert expect(Step("measure", JOB, "eager")) == pytest.approx(1, abs=0.1)
    crowded = expectation("cpu", 1.0, 4.0)
    assert crowded(Step("prepare", JOB, "compile")) == 4 * expect(Step("prepare", JOB, "compile"))
    assert crowded(Step("measure", JOB, "eager")) < 1.2
    # A model of another library is taken for B0 at its resolution.
    assert expect(Step("reference", JOB._replace(model="torch.nn:Identity"), "")) > 0


def test_on_a_terminal_without_rich_it_is_said_in_lines(
    remaining: Remaining, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = io.StringIO()
    monkeypatch.setattr(output.sys, "stderr", errors)
    ended = threading.Event()
    ended.set()
    output._say_now_and_then("measuring", remaining, ended)
    assert errors.getvalue() == "measuring: about 67 s left\n"
