"""Missing kernels and models without blocks: one warning, at the caller's line, with the command that helps."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
import torchvision
from torch import nn

import effnet_fast
from effnet_fast import build, cli, dispatch
from effnet_fast.backend import native
from effnet_fast.system import advice


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Products that are not built, in a process that has said nothing yet; a test takes out those it has."""
    products = set(build.PRODUCTS)
    real = native.status

    def status(product: str) -> native.Status:
        if product not in products:
            return real(product)._replace(loaded=True)
        return native.Status(False, None, "not built yet", build.COMMAND, {})

    monkeypatch.setattr(native, "status", status)
    monkeypatch.setattr(advice, "_said", False)
    monkeypatch.setattr(build, "driver_present", lambda: False)
    dispatch.forget_choices()
    yield products
    dispatch.forget_choices()


def block() -> nn.Module:
    return effnet_fast.nn.MBConv(8, 8, expand_ratio=2, kernel_size=3, stride=1, squeeze_channels=2)


def heard(function, *args, **kwargs) -> list[str]:  # type: ignore[no-untyped-def]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args, **kwargs)
    assert all(one.filename == __file__ for one in caught), [one.filename for one in caught]
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("way", ["patch", "b0", "create", "optimize"])
def test_missing_kernels_are_said_once(missing: set[str], way: str) -> None:
    model = torchvision.models.efficientnet_b0().eval()
    call = {
        "patch": lambda: effnet_fast.patch(model),
        "b0": lambda: effnet_fast.b0(),
        "create": lambda: effnet_fast.create("b0"),
        "optimize": lambda: effnet_fast.optimize(model, (1, 3, 32, 32)),
    }[way]
    (said,) = heard(call)
    assert "CPU kernels are missing (not built yet)" in said and "`effnet-fast build`" in said
    assert "PyTorch's own modules run" in said
    assert heard(call) == [] and heard(effnet_fast.patch, block()) == []


def test_nothing_is_said_where_the_kernels_are(missing: set[str]) -> None:
    missing -= {"_ops"}
    assert heard(effnet_fast.patch, block()) == []


def test_nothing_is_said_where_the_user_chose(missing: set[str]) -> None:
    with effnet_fast.use_backend("reference"):
        assert heard(effnet_fast.patch, block()) == []
    assert len(heard(effnet_fast.patch, block())) == 1


def test_missing_cuda_kernels_are_said_where_a_gpu_is(
    missing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing -= {"_ops"}
    monkeypatch.setattr(build, "driver_present", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (said,) = heard(effnet_fast.patch, block())
    assert "the CUDA kernels are missing" in said and "Triton's run" in said


def test_the_log_says_what_runs(missing: set[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning, match="kernels are missing"):
        model = effnet_fast.patch(block()).eval()
    with caplog.at_level(logging.INFO, logger="effnet_fast"), torch.no_grad():
        model(torch.randn(1, 8, 5, 5))
        lines = len(caplog.records)
        model(torch.randn(1, 8, 5, 5))
    assert len(caplog.records) == lines > 0
    assert all(record.message.endswith("using PyTorch's own modules (eager)") for record in caplog.records)
    assert "not cpu" in caplog.text
    # The op itself, called by the user, has nothing but the reference.
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="effnet_fast"):
        effnet_fast.ops.depthwise(torch.randn(1, 8, 5, 5), torch.randn(8, 1, 3, 3), padding=(1, 1, 1, 1))
    assert "using reference" in caplog.text


def test_patching_nothing_is_said_each_time(missing: set[str]) -> None:
    model = torchvision.models.resnet18()
    for _ in range(2):
        (said,) = heard(effnet_fast.patch, model)
        assert "no MBConv block" in said and "ResNet" in said and "timm" in said
    (said,) = heard(effnet_fast.patch, block(), filter_fn=lambda *_: False)
    assert "filter_fn accepted none" in said
    with pytest.raises(effnet_fast.EffnetFastError, match="no MBConv block"):
        effnet_fast.patch(model, strict=True)
    assert heard(effnet_fast.report, model) == []


def test_counting_a_model_says_nothing(missing: set[str]) -> None:
    """On the meta device nothing is computed."""
    with torch.device("meta"):
        assert heard(effnet_fast.b0) == []
    assert heard(effnet_fast.models.summarize, "b0", 96) == []


def test_the_command_line_says_it_in_a_line(
    missing: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object, output: object) -> int:
        effnet_fast.patch(block())
        warnings.warn("another's", RuntimeWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli.models, "run", run)
    assert cli.main(["models"]) == 0
    ours, *other = capsys.readouterr().err.splitlines()
    assert ours.startswith("effnet-fast: warning: the CPU kernels are missing") and ours.endswith(
        "compiles them"
    )
    assert "RuntimeWarning: another's" in other[0]


def test_help_names_every_library() -> None:
    for library in ("torchvision", "timm", "efficientnet_pytorch", "efficientnet_lite_pytorch"):
        assert library in str(effnet_fast.patch.__doc__)
