"""Checkpoints as training scripts write them are understood, or refused by one sentence."""

import argparse
import functools
import pathlib

import pytest
import torch
from checkpoints import assert_loaded, load, network, prefixed, saved, silently
from torch import nn

from effnet_fast.errors import CheckpointError, CheckpointWarning


class Config:
    """A class of a user's script, which is not there when the weights are read."""

    def __init__(self) -> None:
        self.lr = 0.1


class ConfigDict(dict):
    """Dictionaries of some kind, as configuration libraries have them."""


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
