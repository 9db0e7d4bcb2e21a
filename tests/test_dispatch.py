"""The choice of a backend: order, reasons, and the user's say."""

import importlib
import importlib.util
import logging
import threading

import pytest
import torch

import effnet_fast
from effnet_fast import BackendError, dispatch, ops, use_backend
from effnet_fast.backend import reference

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_choices():
    dispatch.forget_choices()
    yield
    dispatch.forget_choices()


def test_every_op_has_a_reference_with_every_name() -> None:
    for op, order in dispatch.ORDER.items():
        assert order[-1] == "reference" and callable(getattr(reference, op))


def test_backends_says_ok_or_why() -> None:
    table = effnet_fast.backends("cpu", torch.float32)
    assert set(table) == set(dispatch.ORDER)
    for op, answers in table.items():
        assert list(answers) == list(dispatch.ORDER[op])
        assert answers["reference"] == "ok"
        assert all(reason for reason in answers.values())
    assert table["depthwise"]["cuda"] != "ok" and table["depthwise"]["triton"] != "ok"


def test_asking_about_cuda_from_the_table_does_not_initialize_it() -> None:
    effnet_fast.backends("cpu")
    assert not torch.cuda.is_initialized()


def test_forced_backend_that_cannot_run_raises_its_reason() -> None:
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
    with use_backend("cuda"), pytest.raises(BackendError, match=r"no backend can run .* on cpu: cuda: .+"):
        ops.depthwise(x, weight)
    with use_backend("cuda"), pytest.raises(BackendError, match="the cuda backend has no pointwise"):
        ops.pointwise(x, torch.randn(2, 4))


def test_order_of_the_users_backends() -> None:
    with use_backend("cuda", "reference"):
        choice = dispatch.choose("depthwise", CPU, torch.float32)
    assert choice.backend == "reference" and [name for name, _ in choice.passed_over] == ["cuda"]


def test_bookkeeping_ops_follow_the_usual_order_under_a_choice() -> None:
    with use_backend("cpu"):
        assert dispatch.choose("batch_norm_reduce", CPU, torch.float32).backend in ("cpu", "reference")


def test_fp64_falls_back_to_the_reference_and_logs_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="effnet_fast"):
        choice = dispatch.choose("depthwise", CPU, torch.float64, kernel_size=3, stride=1)
    assert choice.backend == "reference"
    assert "not cpu" in caplog.text and "using reference" in caplog.text


@pytest.mark.parametrize("value", ["reference", " reference , cpu", "cuda,reference"])
def test_environment_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, value)
    assert dispatch.choose("depthwise", CPU, torch.float32).backend == "reference"
    with use_backend("auto"):
        assert not dispatch.chosen_by_user()


def test_environment_variable_with_a_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "tpu")
    with pytest.raises(BackendError, match="EFFNET_FAST_BACKEND: unknown backend 'tpu'; known: auto, cuda"):
        dispatch.choose("depthwise", CPU, torch.float32)


def test_choices_nest_and_belong_to_their_thread() -> None:
    seen = []
    with use_backend("reference"):
        with use_backend("cpu"):
            assert dispatch.forced_backends() == ("cpu",)
        assert dispatch.forced_backends() == ("reference",)
        thread = threading.Thread(target=lambda: seen.append(dispatch.forced_backends()))
        thread.start()
        thread.join()
    assert seen == [()] and dispatch.forced_backends() == ()


def test_a_backward_in_another_thread_keeps_the_forwards_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    with use_backend("reference"):
        y = ops.depthwise(x, torch.randn(4, 1, 3, 3, requires_grad=True), 1, 1).y
    seen = []
    choose = dispatch.choose

    def spy(op: str, *args, **facts):
        choice = choose(op, *args, **facts)
        seen.append((op, dispatch.forced_backends(), choice.backend))
        return choice

    monkeypatch.setattr(dispatch, "choose", spy)
    thread = threading.Thread(target=y.sum().backward)
    thread.start()
    thread.join()
    assert ("depthwise_backward", ("reference",), "reference") in seen and x.grad is not None


def test_no_name_is_refused() -> None:
    with pytest.raises(BackendError, match="expected at least one backend"), use_backend():
        pass


def test_backends_have_as_one_call_what_the_table_says() -> None:
    for name, having in dispatch.WHOLE.items():
        for backend, (_, functions) in dispatch.MODULES.items():
            if backend == "triton" and importlib.util.find_spec("triton") is None:
                continue
            has = callable(getattr(importlib.import_module(functions), name, None))
            assert has == (backend in having), (name, backend)


def test_answering_stands_in_for_the_table_within_its_block() -> None:
    asked = []

    def answer(op: str, **facts: object) -> object:
        asked.append((op, facts))
        return getattr(reference, op)

    with dispatch.answering(answer):
        assert dispatch.chooser(CPU, torch.float32)("affine_pool", size=1) is reference.affine_pool
    assert asked == [("affine_pool", {"size": 1})]
    dispatch.chooser(CPU, torch.float32)("affine_pool")
    assert len(asked) == 1
