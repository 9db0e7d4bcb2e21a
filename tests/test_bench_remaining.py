"""The time that a sweep still takes: what is foreseen, and what the steps that are done teach."""

from __future__ import annotations

import io
import random
import threading

import pytest

from effnet_fast.bench import providers, sweep, timing
from effnet_fast.bench.remaining import Remaining, Step, Work, expectation
from effnet_fast.bench.targets import Job
from effnet_fast.cli import output

JOB = Job("b0", "infer", 1, 224, "fp32")
#: Seconds; four calls of a tenth of a second beside where a provider is prepared.
EXPECTED = {
    "rates": Work(5, 0, 0),
    "reference": Work(5, 0, 0),
    "prepare": Work(10, 4, 0.1),
    "measure": Work(0, 0, 0.1),
}


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
    return Remaining(sweep._steps(plan), lambda step: EXPECTED[step.kind], 1.0, clock)


def pass_by(remaining: Remaining, clock: Clock, step: Step, seconds: float) -> None:
    with remaining.timed(step):
        clock.now += seconds


def corrected(remaining: Remaining, *step: object) -> float:
    return remaining._corrected(Step(*step), remaining._ratios())


def test_at_first_what_is_expected(remaining: Remaining) -> None:
    # rates once; a reference a job; two providers a job, prepared once and measured three times.
    assert remaining.seconds() == pytest.approx(5 + 2 * 5 + 4 * (10.4 + 3))
    assert remaining.share() == 0 and not remaining.known


def test_a_slow_machine_is_noticed_at_once(remaining: Remaining, clock: Clock) -> None:
    before = remaining.seconds()
    pass_by(remaining, clock, Step("rates", None, "fp32"), 50)
    assert remaining.seconds() > 3 * before


def test_a_provider_is_known_by_its_earlier_job(remaining: Remaining, clock: Clock) -> None:
    pass_by(remaining, clock, Step("prepare", JOB, "compile"), 104)
    remaining.learn(JOB, "compile", 1.0)
    later = JOB._replace(batch=8)
    assert corrected(remaining, "prepare", later, "compile") == pytest.approx(104)
    assert corrected(remaining, "prepare", later, "eager") < 104
    # Calls that take longer than a turn are made three times.
    remaining.learn(JOB, "compile", 2.0)
    assert corrected(remaining, "measure", JOB, "compile") == 6


def test_calls_are_known_by_their_likes(remaining: Remaining) -> None:
    def call(job: Job, provider: str) -> float:
        return remaining._call(Step("measure", job, provider))

    later = JOB._replace(batch=8)
    remaining.learn(JOB, "eager", 0.4)
    assert remaining.known and call(JOB, "eager") == 0.4
    assert call(later, "eager") == call(JOB, "compile") == call(later, "compile") == pytest.approx(0.4)
    remaining.learn(JOB, "compile", 0.1)
    assert call(later, "compile") == pytest.approx(0.1) and call(later, "eager") == pytest.approx(0.4)


def test_nothing_is_foreseen_beyond_the_limit(clock: Clock) -> None:
    plan = sweep.Plan([JOB], ["eager"], "cpu", rounds=3)
    remaining = Remaining(sweep._steps(plan), lambda s: EXPECTED[s.kind], 1.0, clock, lambda: 7 - clock.now)
    assert remaining.seconds() == 7
    clock.now = 9
    assert remaining.seconds() == 0


class Machine:
    """Takes for every step a time of its own: slower or faster than expected, by provider, step and moment."""

    def __init__(self, seed: int, plan: sweep.Plan) -> None:
        self.plan, self.random = plan, random.Random(seed)
        self.speed = 2 ** self.random.uniform(-2, 3)
        self.start = self.speed * 2 ** self.random.uniform(-0.7, 0.7)
        self.calls = {name: self.speed * 2 ** self.random.uniform(-1, 1) for name in plan.providers}
        # Results of compilers that are kept (perhaps of another model), or not.
        self.cold = self.random.random() < 0.3
        self.compiling = 2.2 if self.cold else self.random.choice((0.5, 1.0, 2.0))
        self.expect = expectation("cpu")

    def call(self, step: Step) -> float:
        return self.expect(step).one * self.calls[step.provider]

    def seconds(self, step: Step) -> float:
        disturbed = self.random.uniform(0.9, 1.3)
        work = self.expect(step)
        if step.kind == "measure":
            one = self.call(step)
            return disturbed * one * timing.calls_in(one, self.plan.seconds)
        if step.kind != "prepare":
            return disturbed * self.start * work.own
        plain = self.expect(step._replace(provider="eager")).own
        own = self.start * (plain + self.compiling * (work.own - plain))
        return disturbed * (own + work.calls * self.call(step))


PLANS = {
    "default": (["b0"], ["infer"], [1], ["fp32"], providers.default_providers("cpu", quick=False)),
    "quick": (["b0"], ["infer"], [1], ["fp32"], providers.default_providers("cpu", quick=True)),
    "large": (["b0@1,16", "b7"], ["infer", "train"], [1], ["fp32"], ["eager", "effnet-fast"]),
    "dtypes": (["b0", "b4"], ["infer"], [1, 8], ["fp32", "bf16"], ["eager", "compile", "effnet-fast"]),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_said_is_true_within_a_factor_of_two(name: str) -> None:
    """From the first time that is said to the end, on fast, slow and disturbed machines, within steps too."""
    models, modes, batches, dtypes, who = PLANS[name]
    plan = sweep.Plan(sweep.make_jobs(models, modes, batches, [], dtypes), who, "cpu")
    wrong = []
    for seed in range(40):
        machine, clock = Machine(seed, plan), Clock()
        remaining = Remaining(sweep._steps(plan), expectation("cpu", cold=machine.cold), plan.seconds, clock)
        said = []
        for step in in_order(plan):
            with remaining.timed(step):
                for _ in range(5):
                    clock.now += machine.seconds(step) / 5
                    if remaining.known:
                        said.append((clock.now, remaining.seconds()))
            if step.kind == "prepare":
                remaining.learn(step.job, step.provider, machine.call(step))
            if remaining.known:
                said.append((clock.now, remaining.seconds()))
        assert said[-1][1] == 0 and remaining.share() == 1
        for now, left in said:
            true = clock.now - now
            # Near the end of the last step nothing tells whether it ends; so seconds, and a hundredth of the whole.
            slack = 5 + 0.01 * clock.now
            if not true / 2 - slack <= left <= 2 * true + slack:
                wrong.append((seed, round(now), round(true), round(left)))
    assert wrong == []


def in_order(plan: sweep.Plan) -> list[Step]:
    """As a sweep on the CPU takes its steps: all providers are prepared, then they take turns."""
    steps = sweep._steps(plan)
    order = [step for step in steps if step.kind == "rates"]
    for job in plan.jobs:
        mine = [step for step in dict.fromkeys(steps) if step.job == job]
        order += [step for step in mine if step.kind != "measure"]
        order += [step for step in mine if step.kind == "measure"] * plan.rounds
    return order


def test_while_a_step_runs_the_time_goes_down_until_it_is_late(remaining: Remaining, clock: Clock) -> None:
    before = remaining.seconds()
    with remaining.timed(Step("rates", None, "fp32")):
        clock.now += 3
        assert remaining.seconds() == pytest.approx(before - 3) and 0 < remaining.share() < 0.1
        clock.now += 1
        assert remaining.seconds() == pytest.approx(before - 4)
        clock.now += 96
        assert remaining.seconds() == pytest.approx(before - 5 + 20)


def test_what_fails_is_no_longer_waited_for(remaining: Remaining) -> None:
    before = remaining.seconds()
    remaining.skip(JOB, "compile")
    assert remaining.seconds() == pytest.approx(before - 13.4)


def test_unforeseen_steps_change_nothing(remaining: Remaining, clock: Clock) -> None:
    before = remaining.seconds()
    pass_by(remaining, clock, Step("measure", JOB, "other"), 50)
    assert remaining.seconds() == before


def test_expectation_grows_with_the_work() -> None:
    expect = expectation("cpu")
    big = Job("b7", "train", 8, 600, "fp32")
    for kind in ("reference", "prepare"):
        assert expect(Step(kind, big, "eager")).own > expect(Step(kind, JOB, "eager")).own
    for kind in ("prepare", "measure"):
        assert expect(Step(kind, big, "eager")).one > 100 * expect(Step(kind, JOB, "eager")).one
    assert expect(Step("prepare", JOB, "compile")).own > 2 * expect(Step("prepare", JOB, "eager")).own
    crowded = expectation("cpu", 4.0)
    assert crowded(Step("prepare", JOB, "compile")).own == 4 * expect(Step("prepare", JOB, "compile")).own
    # A model of another library is taken for B0 at its resolution.
    assert expect(Step("reference", JOB._replace(model="torch.nn:Identity"), "")).own > 0


def test_on_a_terminal_without_rich_it_is_said_in_lines(
    remaining: Remaining, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = io.StringIO()
    monkeypatch.setattr(output.sys, "stderr", errors)
    ended = threading.Event()
    ended.set()
    output._say_now_and_then("measuring", remaining, ended)
    assert errors.getvalue() == "measuring: no call has been timed yet\n"
    remaining.learn(JOB, "eager", 0.1)
    output._say_now_and_then("measuring", remaining, ended)
    assert errors.getvalue().splitlines()[1] == "measuring: about 69 s left"
