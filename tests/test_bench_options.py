"""The options of ``effnet-fast bench``, and the providers they name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from effnet_fast.bench import targets
from effnet_fast.bench.accuracy import relative_error
from effnet_fast.bench.providers import PROVIDERS, Unavailable, default_providers, named
from effnet_fast.bench.targets import Job
from effnet_fast.cli import main, make_parser
from effnet_fast.errors import EffnetFastError

JOB = Job("b0", "infer", 2, 32, "fp32")


def parse(*arguments: str) -> argparse.Namespace:
    return make_parser().parse_args(["bench", *arguments])


def test_lists_by_spaces_or_commas() -> None:
    long = "eager,eager-channels-last,inductor,onnxruntime,openvino,effnet_fast"
    options = parse(
        "--models", "b0", "b4@1,4", "--providers", long, "--dtypes", "fp32,bf16", "--json", "f.json"
    )
    assert options.more_models == ["b0", "b4@1,4"] and options.models == []
    assert options.providers == long.split(",") and options.dtype == ["fp32", "bf16"]
    assert options.json == Path("f.json")
    options = parse("b0", "b7", "--providers", "eager", "openvino", "--dtype", "fp32", "bf16", "--json")
    assert options.models == ["b0", "b7"] and options.providers == ["eager", "openvino"]
    assert options.dtype == ["fp32", "bf16"] and options.json is True
    options = parse()
    assert options.dtype == ["fp32"] and options.providers is None and options.json is False


def test_the_packages_name_is_what_it_has_on_a_device() -> None:
    assert named(["eager", "effnet_fast"], "cpu") == ["eager", "effnet-fast", "effnet-fast-optimize"]
    assert named(["effnet_fast", "effnet-fast"], "cuda") == ["effnet-fast"]
    with pytest.raises(EffnetFastError, match="unknown provider 'magic'"):
        named(["magic"], "cpu")
    assert {"inductor", "effnet-fast-optimize"} <= set(default_providers("cpu", quick=False))
    assert "inductor" not in default_providers("cpu", quick=True)
    assert not {"inductor", "effnet-fast-optimize"} & set(default_providers("cuda", quick=False))


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--dtypes", "fp32,int3"), "got 'int3'"),
        (("--providers", "eager,magic"), "unknown provider 'magic'"),
        (("--json", "b0"), "--json takes one file ending in .json"),
        (("--json", "a.json", "--out", "b.json"), "--json takes one file"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


@pytest.mark.parametrize("dtype, limit", [("fp32", 1e-4), ("bf16", 0.2)])
def test_the_optimized_model_is_a_provider(dtype: str, limit: float) -> None:
    job, device = JOB._replace(dtype=dtype), torch.device("cpu")
    model, x = targets.stock_model(job, device), targets.images(job, device)
    prepared = PROVIDERS["effnet-fast-optimize"](model, x, job)
    assert prepared.outputs is not None
    with torch.no_grad():
        assert relative_error(prepared.outputs(), model.double()(x.double())) < limit


@pytest.mark.parametrize("provider", ["effnet-fast-optimize", "inductor", "inductor-channels-last"])
def test_inference_only_providers_say_so(provider: str) -> None:
    job = JOB._replace(mode="train")
    model = targets.stock_model(job, torch.device("cpu"))
    with pytest.raises(Unavailable, match="inference only"):
        PROVIDERS[provider](model, targets.images(job, torch.device("cpu")), job)
