"""Weights from every source load exactly, and bad ones leave the model as it was."""

import argparse
import builtins
import sys
from types import SimpleNamespace

import pytest
import torch

from effnet_fast import models
from effnet_fast.errors import CheckpointError

CLASSES = 7


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    state = models.b0(num_classes=CLASSES).state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        elif key.endswith("num_batches_tracked"):
            value.fill_(5)
    return state


def assert_loaded(model, state):
    own = model.state_dict()
    assert list(own) == list(state)
    for key, value in state.items():
        assert torch.equal(own[key], value), key


class FakeWeights:
    """Stands for a torchvision enum member, with a download that can be watched."""

    def __init__(self, state, categories=CLASSES, error=None):
        self.state, self.error, self.calls = state, error, []
        self.meta = {"categories": [str(i) for i in range(categories)]}

    def get_state_dict(self, *, progress, check_hash):
        self.calls.append((progress, check_hash))
        if self.error:
            raise self.error
        return self.state

    def __str__(self):
        return "Fake_Weights.V1"


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


WRAPPINGS = {
    "plain": dict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "data-parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled-data-parallel": prefixed("_orig_mod.module."),
    "wrapped-data-parallel": lambda s: {"state_dict": prefixed("module.")(s)},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_state_dict_and_wrappers(state, wrap):
    assert_loaded(models.b0(weights=wrap(state), num_classes=CLASSES), state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("wrap", ["plain", "model"])
def test_checkpoint_file(state, tmp_path, suffix, wrap):
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(WRAPPINGS[wrap](state), path)
    assert_loaded(models.create("b0", weights=path, num_classes=CLASSES), state)
    assert_loaded(models.create("b0", weights=str(path), num_classes=CLASSES), state)


def test_safetensors_file(state, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "checkpoint.safetensors"
    safetensors.save_file(dict(state), path)
    assert_loaded(models.b0(weights=path, num_classes=CLASSES), state)


def test_safetensors_missing_names_the_command(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        models.b0(weights=path)


def test_home_directory(state, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state, tmp_path / "mine.pth")
    assert_loaded(models.b0(weights="~/mine.pth", num_classes=CLASSES), state)


def test_enum_member_sets_num_classes(state):
    weights = FakeWeights(state)
    assert_loaded(models.b0(weights=weights, progress=False), state)
    assert weights.calls == [(False, True)]
    with pytest.raises(CheckpointError, match="num_classes=7"):
        models.b0(weights=weights, num_classes=8)


@pytest.mark.parametrize(
    "name",
    ["EfficientNet_B0_Weights.IMAGENET1K_V1", "IMAGENET1K_V1", "DEFAULT", "EfficientNet_B0_Weights.DEFAULT"],
)
def test_torchvision_enum_and_its_names(name, tmp_path, monkeypatch):
    tv = pytest.importorskip("torchvision.models")
    torch.manual_seed(5)
    state = tv.efficientnet_b0().state_dict()
    torch.save(state, tmp_path / "published.pth")
    asked = []

    def download(url, progress=True, check_hash=False, **_):
        asked.append((url, progress, check_hash))
        return torch.load(tmp_path / "published.pth", weights_only=True)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    member = tv.EfficientNet_B0_Weights.IMAGENET1K_V1
    assert_loaded(models.b0(weights=name, progress=False), state)
    assert_loaded(models.b0(weights=member), state)
    assert asked == [(member.url, False, True), (member.url, True, True)]


def test_load_weights_into_a_model(state):
    model = models.b0(num_classes=CLASSES)
    assert models.load_weights(model, state) is model
    assert_loaded(model, state)
    # The model owns its values: the caller's dictionary is not aliased.
    with torch.no_grad():
        model.classifier[1].bias.add_(1)
    assert not torch.equal(model.classifier[1].bias, state["classifier.1.bias"])


def test_half_precision_checkpoint_is_converted(state):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    model = models.b0(weights=half, num_classes=CLASSES)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.features[0][0].weight, half["features.0.0.weight"].float())


def test_old_checkpoint_without_batch_counters(state):
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    model = models.b0(weights=old, num_classes=CLASSES)
    assert torch.equal(model.features[0][1].running_mean, state["features.0.1.running_mean"])
    assert model.features[0][1].num_batches_tracked == 0
    assert len(old) < len(state), "the caller's mapping must not be filled in"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_tensor_was_cast(state, dtype):
    """Counters of batches too, as a loop over the state dict does it."""
    cast = {key: value.to(dtype) for key, value in state.items()}
    model, stock = models.b0(num_classes=CLASSES, weights=cast), models.b0(num_classes=CLASSES)
    stock.load_state_dict(cast)
    assert_loaded(model, stock.state_dict())
    assert model.features[0][1].num_batches_tracked.dtype == torch.int64
    integers = state | {"classifier.1.bias": torch.zeros(CLASSES, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match="classifier.1.bias expected float32"):
        models.b0(num_classes=CLASSES, weights=integers)


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


def test_enum_without_categories_uses_the_default_head():
    weights = SimpleNamespace(meta={}, get_state_dict=lambda progress, check_hash: models.b0().state_dict())
    assert models.b0(weights=weights).classifier[1].out_features == 1000
