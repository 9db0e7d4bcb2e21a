"""Bad weights are refused by one sentence, and leave the model as it was."""

import argparse
import builtins
import sys

import pytest
import torch
from weight_states import CLASSES, FakeWeights, assert_loaded

from effnet_fast import models
from effnet_fast.errors import CheckpointError


def without(key):
    return lambda s: {k: v for k, v in s.items() if k != key}


def replaced(key, value):
    return lambda s: {**s, key: value}


BAD_STATES = {
    "other-head": (
        lambda s: {**s, "classifier.1.weight": torch.zeros(10, 1280), "classifier.1.bias": torch.zeros(10)},
        r"classifier has 10 classes, the model's 7: .*num_classes=10",
    ),
    "missing": (without("features.0.0.weight"), r"1 missing \(features\.0\.0\.weight\)"),
    "unexpected": (replaced("extra", torch.zeros(1)), r"1 unexpected \(extra\)"),
    "shape": (
        replaced("features.0.1.bias", torch.zeros(3)),
        r"1 of wrong shape \(features\.0\.1\.bias expected float32 \[32\], got float32 \[3\]\)",
    ),
    "integers": (replaced("features.0.1.bias", torch.zeros(32, dtype=torch.int8)), r"got int8 \[32\]"),
    "head-and-missing": (
        lambda s: {**without("features.0.1.bias")(s), "classifier.1.weight": torch.zeros(10, 1280)},
        r"1 missing .*; 1 of wrong shape",
    ),
    "other-model": (lambda s: models.b1(num_classes=CLASSES).state_dict(), r"\d+ unexpected \(.*, \.\.\.\)"),
    "empty": (lambda s: {}, r"\d+ missing \(.*, \.\.\.\)"),
    "not-tensors": (lambda s: {"net": s, "epoch": 3}, r"under 'net', expected tensors .*'state_dict'"),
    "not-strings": (lambda s: {0: torch.zeros(1)}, r"Tensor under 0, expected"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_state_leaves_the_model_as_it_was(state, spoil, message):
    torch.manual_seed(11)
    model = models.b0(num_classes=CLASSES)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as raised:
        models.load_weights(model, spoil(state))
    assert "\n" not in str(raised.value)
    assert_loaded(model, before)
    with pytest.raises(CheckpointError, match=message):
        models.b0(weights=spoil(state), num_classes=CLASSES)


def test_default_head_is_checked_too(state):
    with pytest.raises(CheckpointError, match=r"7 classes, the model's 1000: .*num_classes=7"):
        models.b0(weights=state)


def save_pickle(path):
    torch.save({"args": argparse.Namespace(lr=1)}, path)


BAD_FILES = {
    "text": (
        lambda p: p.write_text("<html>404 not found</html>"),
        "is not a readable checkpoint: it is damaged or of another kind",
    ),
    "empty": (lambda p: p.write_bytes(b""), "is not a readable checkpoint"),
    "random": (lambda p: p.write_bytes(bytes(range(256)) * 8), "is not a readable checkpoint"),
    "tensor": (lambda p: torch.save(torch.zeros(2), p), "holds Tensor, expected a state dict"),
    "module": (
        lambda p: torch.save(torch.nn.Linear(2, 2), p),
        r"torch\.nn\.modules\.linear\.Linear, and only tensors are loaded, for safety; save model",
    ),
    "objects": (save_pickle, r"has argparse\.Namespace under 'args', expected tensors"),
    "folder": (lambda p: p.mkdir(), "is not a file"),
    "missing": (lambda p: None, "does not exist"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file(kind, suffix, tmp_path):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    write, message = BAD_FILES[kind]
    path = tmp_path / f"bad{suffix}"
    write(path)
    if suffix == ".safetensors" and path.is_file():
        message = "is not a readable checkpoint"
    with pytest.raises(CheckpointError, match=message) as raised:
        models.b0(weights=path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "weights_only" not in str(raised.value), "torch's own text advises to switch the safety off"


def test_truncated_file(state, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        models.b0(weights=path, num_classes=CLASSES)


def test_file_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return builtins.print, ("executed",)

    path = tmp_path / "evil.pth"
    torch.save({"features.0.0.weight": Payload()}, path)
    with pytest.raises(CheckpointError, match="only tensors are loaded"):
        models.b0(weights=path)


def test_safetensors_missing_names_the_command(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        models.b0(weights=path)


def test_failed_download_is_one_line():
    error = OSError("no route to host\nmore detail")
    with pytest.raises(CheckpointError, match=r"Fake_Weights\.V1 could not be downloaded: no route to host$"):
        models.b0(weights=FakeWeights({}, error=error))


@pytest.mark.parametrize("weights", [3, True, torch.nn.Linear(1, 1), FakeWeights, [("a", 1)]])
def test_wrong_type(weights):
    with pytest.raises(CheckpointError, match="expected None, a torchvision weights enum member or its name"):
        models.b0(weights=weights)


def test_enum_of_another_model_is_refused_before_download():
    member = type("EfficientNet_B3_Weights", (FakeWeights,), {})({})
    with pytest.raises(
        CheckpointError, match=r"b0 takes EfficientNet_B0_Weights, got EfficientNet_B3_Weights"
    ):
        models.b0(weights=member)
    assert member.calls == []


def test_names_that_do_not_exist():
    pytest.importorskip("torchvision")
    with pytest.raises(
        CheckpointError, match="EfficientNet_B0_Weights has IMAGENET1K_V1, DEFAULT, got 'TYPO'"
    ):
        models.b0(weights="TYPO")
    with pytest.raises(
        CheckpointError, match=r"b0 takes EfficientNet_B0_Weights, got EfficientNet_B3_Weights"
    ):
        models.b0(weights="EfficientNet_B3_Weights.DEFAULT")
    with pytest.raises(CheckpointError, match="has no EfficientNet_B9_Weights"):
        models.b0(weights="EfficientNet_B9_Weights.DEFAULT")
    with pytest.raises(CheckpointError, match=r"'DEFAULT' needs its enum's name here"):
        models.efficientnet(weights="DEFAULT")


def test_names_without_torchvision(monkeypatch, state):
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(CheckpointError, match=r"EfficientNet_B0_Weights\.DEFAULT .*pip install torchvision"):
        models.b0(weights="DEFAULT")
    assert_loaded(models.b0(weights=state, num_classes=CLASSES), state)
