"""Weights under the names of timm and efficientnet_pytorch give these libraries' logits, or are refused."""

import argparse
import functools

import pytest
import torch
from checkpoints import network, saved
from patched_blocks import shake_batch_norms
from torch import nn
from weight_states import CLASSES

from effnet_fast import models, use_backend
from effnet_fast.errors import CheckpointError, CheckpointWarning


@pytest.fixture(scope="module")
def timm_model() -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    return shake_batch_norms(timm.create_model("efficientnet_b0", num_classes=CLASSES)).double().eval()


def assert_same_logits(model: nn.Module, other: nn.Module, size: int) -> None:
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad(), use_backend("reference"):
        got, expected = model.double().eval()(x), other(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_timms_names_give_timms_logits(timm_model: nn.Module, eps: float) -> None:
    """B5 to B7 of this package have another epsilon than timm's."""
    norm = functools.partial(nn.BatchNorm2d, eps=eps)
    said = r"its names are timm's;.* tf_efficientnet_\*"
    with pytest.warns(CheckpointWarning, match=said) as caught:
        model = models.b0(weights=timm_model.state_dict(), num_classes=CLASSES, norm_layer=norm)
    assert ("eps was set to timm's 1e-05" in str(caught[0].message)) is (eps != 1e-5)
    assert_same_logits(model, timm_model, 64)


def test_timms_training_script(timm_model: nn.Module, tmp_path) -> None:
    average = {key: value + 1 for key, value in timm_model.state_dict().items()}
    checkpoint = {
        "arch": "efficientnet_b0",
        "state_dict": timm_model.state_dict(),
        "state_dict_ema": average,
        "args": argparse.Namespace(),
    }
    with pytest.warns(CheckpointWarning, match="under 'state_dict_ema', which were taken") as caught:
        model = models.b0(weights=saved(checkpoint, tmp_path), num_classes=CLASSES)
    assert "tf_" not in str(caught[0].message), "the checkpoint says that it is none of these"
    assert torch.equal(model.classifier[1].weight, average["classifier.weight"].float())


@pytest.mark.parametrize("told_by", ["arch", "file"])
def test_timms_tensorflow_networks_are_refused(timm_model: nn.Module, tmp_path, told_by: str) -> None:
    """They have the names of the others and pad otherwise."""
    state, path = timm_model.state_dict(), tmp_path / "checkpoint.pth"
    if told_by == "arch":
        torch.save({"arch": "tf_efficientnet_b0", "state_dict": state}, path)
    else:
        path = tmp_path / "tf_efficientnet_b0_aa-827b6e33.pth"
        torch.save(state, path)
    with pytest.raises(
        CheckpointError, match=r"is of timm's tf_efficientnet_b0.*pads as TensorFlow does.*patch"
    ):
        models.b0(weights=path, num_classes=CLASSES)


@pytest.fixture(scope="module")
def lukemelas_model() -> nn.Module:
    library = pytest.importorskip("efficientnet_pytorch")
    torch.manual_seed(1)
    model = library.EfficientNet.from_name("efficientnet-b0", num_classes=CLASSES, image_size=65)
    return shake_batch_norms(model).double().eval()


def test_efficientnet_pytorchs_networks_are_refused(lukemelas_model: nn.Module, tmp_path) -> None:
    with pytest.raises(
        CheckpointError, match="efficientnet_pytorch, which pads as TensorFlow does"
    ) as raised:
        models.b0(weights=saved(lukemelas_model.state_dict(), tmp_path), num_classes=CLASSES)
    assert "models.rename_weights" in str(raised.value) and "\n" not in str(raised.value)


def test_efficientnet_pytorchs_names_give_its_logits_where_paddings_agree(lukemelas_model: nn.Module) -> None:
    """At sides of 32n + 1 TensorFlow's padding is symmetric at every stride."""
    model = models.b0(num_classes=CLASSES, norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3))
    state = models.rename_weights(lukemelas_model.state_dict(), model)
    assert sorted(state) == sorted(model.state_dict())
    model.load_state_dict(state)
    assert_same_logits(model, lukemelas_model, 65)


def test_names_of_neither_library_are_not_renamed() -> None:
    with pytest.raises(CheckpointError, match="has not the names of timm or efficientnet_pytorch"):
        models.rename_weights(network().state_dict(), network())


def test_weights_of_another_size_name_what_does_not_fit(timm_model: nn.Module) -> None:
    model = models.b1(num_classes=CLASSES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"\d+ missing \(features\.1\.1\.block.*\)"):
        models.load_weights(model, timm_model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.eps == 1e-5 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
