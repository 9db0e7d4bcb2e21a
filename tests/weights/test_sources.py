"""Weights from every source load exactly."""

from types import SimpleNamespace

import pytest
import torch
from weight_states import CLASSES, FakeWeights, assert_loaded

from effnet_fast import models
from effnet_fast.errors import CheckpointError


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


def test_enum_without_categories_uses_the_default_head():
    weights = SimpleNamespace(meta={}, get_state_dict=lambda progress, check_hash: models.b0().state_dict())
    assert models.b0(weights=weights).classifier[1].out_features == 1000


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
