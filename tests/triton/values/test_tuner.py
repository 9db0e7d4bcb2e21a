"""The tuner end to end, with a pretended clock: it must store what it measured fastest, and launches must use it."""

import json

import pytest
import torch
from effnet_fast.kernels import configs, tuning
from effnet_fast.kernels.runtime import INTERPRET

from effnet_fast.bench import tuner
from effnet_fast.errors import EffnetFastError
from effnet_fast.models import config as models


def test_stores_the_fastest(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    # One small stage in place of a network's seven.
    monkeypatch.setattr(tuner, "scaled_stages", lambda *_: (models.Stage(2, 3, 2, 8, 16, 1),))
    monkeypatch.setitem(tuner.VARIANTS, "b0", models.VARIANTS["b0"]._replace(resolution=12))
    device = torch.device("cpu" if INTERPRET else "cuda")
    calls = []

    def measure(call):
        call()
        calls.append(call)
        # The later a candidate comes, the faster it is.
        return 1.0 / len(calls)

    lines = []
    path = tuner.tune("b0", torch.float16, 2, device, lines.append, measure)
    assert path.parent == tmp_path / "tuned"
    stored = json.loads(path.read_text())
    assert set(stored) >= {
        "depthwise_fwd/float16/*",
        "pointwise_backward/float16/32",
        "affine_pool/float16/*",
    }
    arch = tuning.architecture(device)
    assert stored["depthwise_fwd/float16/*"] == configs.rows("depthwise_fwd", torch.float16, arch)[-1]
    assert stored["pointwise_backward/float16/32"] is None
    assert len(lines) == len(stored)


def test_launches_use_what_was_stored(tmp_path, monkeypatch):
    rows = configs.rows("depthwise_fwd", torch.float16, "sm_90")
    device = torch.device("cuda", 0)
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Imaginary 9000")
    path = tuning.cache_file("NVIDIA Imaginary 9000")
    assert path == tmp_path / "tuned" / "nvidia_imaginary_9000.json"
    path.parent.mkdir()
    tuning.forget()
    assert tuning.find("depthwise_fwd", torch.float16, device) == rows[0]
    stored = {
        "depthwise_fwd/float16/*": rows[1],
        "pointwise_backward/float16/32": None,
        "affine_pool/float16/*": {},
    }
    path.write_text(json.dumps(stored))
    tuning.forget()
    assert tuning.find("depthwise_fwd", torch.float16, device) == rows[1]
    assert tuning.find("depthwise_fwd", torch.bfloat16, device) == rows[0]
    assert tuning.find("pointwise_backward", torch.float16, device, 24) is None
    # What is not in the table (any more) is ignored.
    assert (
        tuning.find("affine_pool", torch.float16, device)
        == configs.rows("affine_pool", torch.float16, "sm_90")[0]
    )
    tuning.forget()


def test_a_cache_folder_that_cannot_be_written_is_told_before_measuring(tmp_path, monkeypatch):
    device = torch.device("cpu" if INTERPRET else "cuda")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(EffnetFastError, match="cannot be written: Not a directory; EFFNET_FAST_CACHE names"):
        tuner.tune("b0", torch.float16, 2, device, measure=lambda call: pytest.fail("it measured"))


def test_refuses_with_the_reason():
    with pytest.raises(EffnetFastError, match="model: expected one of b0"):
        tuner.tune("b9")
    with pytest.raises(EffnetFastError, match="float64 is not"):
        tuner.tune("b0", torch.float64, device="cpu")
