"""Reading a checkpoint runs none of its code and imports none of its modules."""

import os
import subprocess
import sys
import types

import pytest
import torch
from checkpoints import load, network, saved, silently

import effnet_fast
from effnet_fast.errors import CheckpointError


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
