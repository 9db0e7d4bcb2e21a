"""The demo on the real photos with the real weights: known classes, and failure when a patched network is wrong."""

from __future__ import annotations

import json

import pytest
import torch

import effnet_fast
from effnet_fast import EffnetFastError, samples
from effnet_fast.cli import demo, main


@pytest.fixture(autouse=True)
def _needs_packages() -> None:
    try:
        samples.require("demo", samples.packages())
    except EffnetFastError as error:
        pytest.skip(str(error))


def run_demo(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict]:
    code = main(["demo", "--rounds", "1", "--device", "cpu", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


#: Of the stock network. Probabilities depend on the JPEG decoder and the resampling in the third digit.
EXPECTED = {
    "cat": ("Egyptian cat", "tiger cat"),
    "coffee": ("espresso",),
    "rocket": ("missile",),
    "flower": ("daisy",),
    "palace": ("palace",),
}


def any_backend() -> list[str]:
    """Options for a fused run: the CPU kernels where they are built, else the reference."""
    return [] if effnet_fast.backends("cpu")["depthwise"]["cpu"] == "ok" else ["--backend", "reference"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stock_and_patched_agree(capsys: pytest.CaptureFixture[str], backend: str) -> None:
    if (reason := effnet_fast.backends("cpu")["depthwise"][backend]) != "ok":
        pytest.skip(reason)
    code, result = run_demo(capsys, "--backend", backend)
    assert code == 0 and result["passed"] is True
    assert result["max_logit_difference"] <= 1e-4
    photos = {photo["photo"]: photo for photo in result["photos"]}
    assert set(photos) == set(EXPECTED)
    for name, photo in photos.items():
        assert photo["same_top1"] and photo["stock"][0]["label"] in EXPECTED[name]
        for before, after in zip(photo["stock"], photo["patched"], strict=True):
            assert after["probability"] == pytest.approx(before["probability"], abs=1e-4)
    assert photos["coffee"]["patched"][0]["probability"] == pytest.approx(0.957, abs=0.005)
    assert set(result["latency_ms"]) == {"stock", "stock, channels_last", "patched"}
    assert all(value > 0 for value in result["latency_ms"].values())
    assert len(result["blocks"]) == 16
    # Chosen by name, these kernels really compute: nothing is left to the stock blocks.
    assert {(row["state"], row["backend"]) for row in result["blocks"]} == {("fused", backend)}


@pytest.fixture
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing takes most of a demo's time; these tests are about the comparison."""
    times = {demo.STOCK: 1.0, demo.STOCK_LAST: 1.0, demo.PATCHED: 1.0}
    monkeypatch.setattr(demo, "_latency", lambda *_: times)


@pytest.mark.usefixtures("_untimed")
@pytest.mark.parametrize("fault", ["small", "large", "nan"])
def test_a_wrong_patched_network_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real = effnet_fast.patch

    def faulty(model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            bias = model._fc.bias
            bias.add_(1e-3) if fault == "small" else bias[7].fill_(
                100.0 if fault == "large" else float("nan")
            )
        return real(model)

    monkeypatch.setattr(effnet_fast, "patch", faulty)
    code, result = run_demo(capsys, *any_backend())
    assert code == 1 and result["passed"] is False
    if fault == "small":
        assert all(photo["same_top1"] for photo in result["photos"])
        assert result["max_logit_difference"] == pytest.approx(1e-3, rel=0.05)
    if fault == "large":
        assert not any(photo["same_top1"] for photo in result["photos"])


@pytest.mark.usefixtures("_untimed")
def test_comparing_the_stock_network_with_itself_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effnet_fast, "patch", lambda model: model)
    code, result = run_demo(capsys)
    assert code == 1 and result["passed"] is False and result["max_logit_difference"] == 0
    assert {row["reason"] for row in result["blocks"]} == {"not patched"}


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--rounds", "1", "--device", "cpu", *any_backend()]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-2])) <= 80
    for words in ("espresso", "palace", "median ms", "fastest stock / patched = ", "16 of 16 blocks fused"):
        assert words in out
    assert out.splitlines()[-1].startswith("passed: same first choice on 5 of 5 photos")


def test_classify_lite0(capsys: pytest.CaptureFixture[str]) -> None:
    coffee = str(samples.photo_paths()["coffee"])
    assert main(["classify", coffee, "--weights", "lite0", "--device", "cpu", "--top", "1", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    (best,) = result["predictions"]
    assert best["label"] == "espresso" and best["probability"] == pytest.approx(0.957, abs=0.005)
