"""Weight files as people have them: what other packages' scripts write is understood, or refused by one sentence."""

import argparse
import functools
import os
import pathlib
import subprocess
import sys
import types
import warnings

import pytest
import torch
from patched_blocks import shake_batch_norms
from torch import nn

import effnet_fast
from effnet_fast import models, use_backend
from effnet_fast.errors import CheckpointError, CheckpointWarning

CLASSES = 7
SMALL = {"width_mult": 0.25, "depth_mult": 0.3, "num_classes": CLASSES}


class Config:
    """A class of a user's script, which is not there when the weights are read."""

    def __init__(self) -> None:
        self.lr = 0.1


class ConfigDict(dict):
    """Dictionaries of some kind, as configuration libraries have them."""


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return shake_batch_norms(models.efficientnet(**SMALL))


def load(weights, **changes) -> nn.Module:
    return models.efficientnet(weights=weights, **(SMALL | changes))


def assert_loaded(model: nn.Module, source: nn.Module) -> None:
    for (key, value), (name, expected) in zip(
        model.state_dict().items(), source.state_dict().items(), strict=True
    ):
        assert key == name and torch.equal(value, expected), key


def silently(weights, source: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_loaded(load(weights), source)


def prefixed(prefix: str, state) -> dict:
    return {prefix + key: value for key, value in state.items()}


def saved(checkpoint, folder: pathlib.Path) -> pathlib.Path:
    torch.save(checkpoint, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def averaged(model: nn.Module) -> dict:
    state = torch.optim.swa_utils.AveragedModel(model, use_buffers=True).state_dict()
    assert "n_averaged" in state and "module.classifier.1.bias" in state
    return state


def test_averaged_model(tmp_path) -> None:
    model = network()
    silently(averaged(model), model)
    silently(saved(averaged(model), tmp_path), model)


def test_lightning_checkpoint(tmp_path) -> None:
    """Callbacks and hyperparameters hold objects of any class."""
    model = network()
    checkpoint = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed("model.", model.state_dict()),
        "callbacks": {"ModelCheckpoint": {"dirpath": tmp_path, "best_model_score": torch.tensor(0.9)}},
        "hyper_parameters": {"config": Config(), "more": ConfigDict(lr=1), "act": functools.partial(nn.SiLU)},
    }
    with pytest.warns(
        CheckpointWarning, match=r"checkpoint\.pth: the prefix 'model\.' was taken off its names$"
    ):
        assert_loaded(load(saved(checkpoint, tmp_path)), model)


def test_entries_outside_of_the_network_are_named(tmp_path) -> None:
    model = network()
    state = {"criterion.weight": torch.ones(7), "extra": None, **prefixed("net.", model.state_dict())}
    with pytest.warns(
        CheckpointWarning, match=r"2 entries outside of 'net\.' were left out \(criterion\.weight, extra\)"
    ):
        assert_loaded(load({"state_dict": state}), model)


def test_two_networks_in_one_checkpoint_are_refused(tmp_path) -> None:
    student, teacher = network().state_dict(), network(4).state_dict()
    both = {"state_dict": {**prefixed("student.", student), **prefixed("teacher.", teacher)}}
    with pytest.raises(
        CheckpointError,
        match=r"holds 2 networks, with the prefixes 'student\.', 'teacher\.'; expected the state dict of one",
    ):
        load(saved(both, tmp_path))


def test_torchvisions_training_script(tmp_path) -> None:
    """A Namespace with what its arguments may be, an optimizer, a scheduler, averaged weights beside the others."""
    trained, average = network(), network(4)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(
            lr=0.1, device=torch.device("cpu"), output=pathlib.Path("runs"), seen={1, 2}
        ),
    }
    silently(saved(checkpoint, tmp_path), trained)
    checkpoint["model_ema"] = averaged(average)
    with pytest.warns(
        CheckpointWarning, match=r"averaged weights under 'model_ema', which were taken.* under 'model'$"
    ):
        assert_loaded(load(saved(checkpoint, tmp_path)), average)


def test_our_own_example_checkpoint_loads_its_averaged_weights(tmp_path) -> None:
    trained, average = network(), network(4)
    with pytest.warns(CheckpointWarning, match="averaged weights under 'ema'"):
        assert_loaded(
            load(saved({"model": trained.state_dict(), "ema": averaged(average)}, tmp_path)), average
        )


def test_averages_of_another_form_are_passed_over() -> None:
    model = network()
    silently({"model": model.state_dict(), "ema": {"decay": 0.9, "shadow": [torch.zeros(2)]}}, model)


@pytest.mark.parametrize("part", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_names_of_wrappers_inside_the_names_are_taken_out(part: str) -> None:
    """One stage wrapped, as torch.compile and FSDP do it, and the whole."""
    model = network()
    state = {
        key.replace("features.1.", f"features.1.{part}"): value for key, value in model.state_dict().items()
    }
    assert any(part in key for key in state)
    silently(state, model)
    silently(prefixed("module." + part, state), model)


def test_compiled_modules_state_dict() -> None:
    model = network()
    silently(torch.compile(model).state_dict(), model)


# --- other libraries' names ---


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


# --- code ---


class Payload:
    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("place", ["args", "state_dict"])
@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.check_call"])
def test_a_checkpoint_cannot_run_code(name: str, place: str, tmp_path) -> None:
    mark = tmp_path / "was-here"
    payload = {
        "os.system": Payload(os.system, f"touch {mark}"),
        "builtins.eval": Payload(eval, f"open({str(mark)!r}, 'w')"),
        "subprocess.check_call": Payload(subprocess.check_call, ["touch", str(mark)]),
    }[name]
    checkpoint = {"state_dict": network().state_dict(), "args": None}
    checkpoint[place] = payload if place == "args" else {**checkpoint[place], "x": payload}
    with pytest.raises(
        CheckpointError, match="it holds .*, and only tensors are loaded, for safety"
    ) as raised:
        load(saved(checkpoint, tmp_path))
    assert "\n" not in str(raised.value)
    assert not mark.exists()


def test_classes_of_a_checkpoint_are_not_imported(tmp_path, monkeypatch) -> None:
    """A module that lies beside the file must not be run by reading it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_module.py").write_text(
        f"open({str(tmp_path / 'was-here')!r}, 'w')\nclass Settings: pass\n"
    )
    model, kind = network(), type("Settings", (), {"__module__": "evil_module"})
    path = tmp_path / "checkpoint.pth"
    module = types.ModuleType("evil_module")
    module.Settings = kind
    monkeypatch.setitem(sys.modules, "evil_module", module)
    torch.save({"model": model.state_dict(), "args": kind()}, path)
    monkeypatch.delitem(sys.modules, "evil_module")
    known = set(torch.serialization.get_safe_globals())
    silently(path, model)
    assert set(torch.serialization.get_safe_globals()) == known
    assert not (tmp_path / "was-here").exists()


def test_a_whole_model_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(
        CheckpointError, match=r"EfficientNet, and only tensors are loaded.*save model\.state_dict\(\) alone"
    ):
        load(saved(effnet_fast.unpatch(network()), tmp_path))
