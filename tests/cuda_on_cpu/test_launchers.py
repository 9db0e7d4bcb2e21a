"""effnet_fast.backend.cuda's functions: their arguments reach the native ops by the right names, in every op.

The ops themselves need a GPU; here a stand-in binds the arguments by the registered schema and runs the kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_name import ByName
from torch import Tensor

from effnet_fast.backend import cuda, native, reference
from effnet_fast.backend.reference import ACTIVATIONS
from effnet_fast.types import Affine, RunningNorm

from . import harness, problems


class Kernels:
    """Stands in for ``torch.ops.effnet_fast_native``."""

    def __init__(self, runner: Path, folder: Path) -> None:
        self._runner, self._folder = runner, folder

    def _bind(self, op: str, args: tuple[Any, ...], named: dict[str, Any] | None = None) -> dict[str, Any]:
        arguments = getattr(native.ops(), op).default._schema.arguments
        given = {a.name: value for a, value in zip(arguments, args, strict=False)} | (named or {})
        missing = {
            a.name: a.default_value for a in arguments if a.name not in given and a.has_default_value()
        }
        assert len(args) <= len(arguments) and set(given | missing) == {a.name for a in arguments}
        return given | missing

    def _run(self, case: harness.Case) -> Any:
        return harness.run(self._runner, [case], self._folder)[0]

    def depthwise_forward(self, *args: Any) -> tuple[Any, ...]:
        a = self._bind("depthwise_forward", args)
        return self._run(
            harness.depthwise(
                *(a["x"], a["weight"], a["stride"], a["padding"]),
                in_affine=_pack(Affine, a["in_scale"], a["in_shift"]),
                in_act=ACTIVATIONS[a["in_act"]],
                affine=_affine(a),
                act=ACTIVATIONS[a["act"]],
                **{name: a[name] for name in ("pool", "stats", "plan")},
            )
        )

    def depthwise_backward(self, *args: Any, **named: Any) -> tuple[Any, ...]:
        a = self._bind("depthwise_backward", args, named)
        lists = (a[name] for name in ("incoming", "act", "source", "in_act", "weight", "stride", "padding"))
        options = {name: a[name] for name in ("residual_grad", "need_dx", "need_dw", "plan")}
        dx, dweight, sums = self._run(harness.depthwise_backward_of_lists(*lists, **options))
        # One row of parts, taps before channels, as the kernel leaves them.
        return dx, dweight if a["merge"] else dweight.flatten(1).t()[None], sums

    def squeeze_excite(self, *args: Any) -> Tensor:
        a = self._bind("squeeze_excite", args)
        tensors = [a[name] for name in ("pooled", "w1", "b1", "w2", "b2")]
        return self._run(harness.squeeze_excite(*tensors, ACTIVATIONS[a["act"]], ACTIVATIONS[a["gate_act"]]))

    def squeeze_excite_backward(self, *args: Any) -> tuple[Any, ...]:
        a = self._bind("squeeze_excite_backward", args)
        tensors = [a[name] for name in ("dgate", "pooled", "w1", "b1", "w2", "b2")]
        acts = ACTIVATIONS[a["act"]], ACTIVATIONS[a["gate_act"]]
        return self._run(harness.squeeze_excite_backward(*tensors, *acts, a["area"]))


def _affine(a: dict[str, Any]) -> Affine | RunningNorm | None:
    if a["var"] is None:
        return _pack(Affine, a["scale"], a["shift"])
    return RunningNorm(a["scale"], a["shift"], a["mean"], a["var"], a["eps"])


def _pack(kind: Callable[..., Any], *vectors: Tensor | None) -> Any:
    return None if vectors[0] is None else kind(*vectors)


@pytest.fixture
def launch(
    plain_runner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[problems.Problem], Any]:
    loaded, reason = native.available("_ops")
    if not loaded:
        pytest.skip(f"the schemas are not built: {reason}")
    monkeypatch.setattr(cuda, "_kernels", lambda: Kernels(plain_runner, tmp_path))
    return lambda problem: getattr(ByName(cuda), problem.op)(*problem.args, **problem.kwargs)


@pytest.mark.parametrize("training", [False, True])
def test_depthwise(launch: Callable[..., Any], training: bool) -> None:
    problem = problems.depthwise(torch.float32, 3, 2, (2, 5, 6, 7), (1, 0, 2, 1), training=training)
    problems.check(problem, launch(problem))


@pytest.mark.parametrize("kind", ["block", "first", "plain"])
def test_depthwise_backward(launch: Callable[..., Any], kind: str) -> None:
    problem = problems.depthwise_backward(torch.float32, 3, 2, (2, 5, 6, 7), (1, 0, 2, 1), kind=kind)
    problems.check(problem, launch(problem))


def test_depthwise_backward_in_parts(launch: Callable[..., Any]) -> None:
    """The weight's gradient before its rows are merged, in the order that merge_weight_grads reads."""
    problem = problems.depthwise_backward(torch.float32, 3, 2, (2, 5, 6, 7), (1, 0, 2, 1), kind="block")
    whole = launch(problem)
    rows = launch(problem._replace(kwargs=problem.kwargs | {"parts": True})).dweight
    weight = problem.args[2]
    assert reference.merge_weight_grads([rows], [weight])[0].equal(whole.dweight)


@pytest.mark.parametrize("need", ["need_dx", "need_dw"])
def test_depthwise_backward_of_one_gradient(launch: Callable[..., Any], need: str) -> None:
    problem = problems.depthwise_backward(
        torch.float32, 3, 1, (2, 5, 6, 7), (1, 1, 1, 1), kind="first", **{need: False}
    )
    problems.check(problem, launch(problem))


def test_depthwise_backward_ignores_what_needs_z(launch: Callable[..., Any]) -> None:
    """Without z the reference goes back through neither activation nor BatchNorm."""
    problem = problems.depthwise_backward(torch.float32, 3, 1, (1, 4, 5, 5), (1, 1, 1, 1), kind="first")
    problem = problem._replace(kwargs={**problem.kwargs, "z": None})
    problems.check(problem, launch(problem))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_squeeze_excite(launch: Callable[..., Any], backward: bool, bias: bool) -> None:
    acts = ("relu", "hardsigmoid")
    problem = problems.squeeze_excite(torch.float32, 2, 12, 3, backward=backward, bias=bias, acts=acts)
    problems.check(problem, launch(problem))


def test_refusals_have_reasons() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for device, dtype, op, facts, part in [
        (cpu, torch.float32, "depthwise", {}, "not on cpu"),
        (gpu, torch.float64, "depthwise", {}, "float64"),
        (gpu, torch.float32, "depthwise", {"kernel_size": 4}, "not 4"),
        (gpu, torch.float32, "depthwise", {"stride": 3}, "not 3"),
    ]:
        ok, reason = cuda.can_run(op, device, dtype, **facts)
        assert not ok
        assert part in reason
    assert not torch.cuda.is_initialized()
