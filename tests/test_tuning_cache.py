"""The file of tuned configurations: damaged, not writable, written by several processes at once."""

import json
import multiprocessing
import warnings

import pytest
import torch
from effnet_fast.kernels import configs, tuning

from effnet_fast.errors import EffnetFastError


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\x00\x01", '{"depthwise_fwd/float16/*": "fast"}'])
def test_a_corrupted_cache_is_passed_over_with_one_warning(tmp_path, monkeypatch, content):
    rows = configs.rows("depthwise_fwd", torch.float16, "sm_90")
    device = torch.device("cuda", 0)
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Imaginary 9000")
    path = tuning.cache_file("NVIDIA Imaginary 9000")
    path.parent.mkdir()
    path.write_text(content)
    tuning.forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert tuning.find("depthwise_fwd", torch.float16, device) == rows[0]
            assert tuning.find("depthwise_fwd", torch.bfloat16, device) == rows[0]
    told = [str(w.message) for w in caught]
    assert len(told) == (0 if content.startswith('{"') else 1)
    assert all(str(path) in text and "run `effnet-fast tune` again" in text for text in told)
    tuning.store("NVIDIA Imaginary 9000", {"depthwise_fwd/float16/*": rows[1]})
    assert tuning.find("depthwise_fwd", torch.float16, device) == rows[1]
    tuning.forget()


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(EffnetFastError, match="cannot be written: Not a directory; EFFNET_FAST_CACHE names"):
        tuning.store("some GPU", {})
    assert (tmp_path / "file").read_text() == ""


def _store_many(first):
    for i in range(first, first + 40):
        tuning.store("shared", {f"kernel{i}": {"BLOCK": i}})


def test_processes_that_store_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    processes = [
        multiprocessing.get_context("fork").Process(target=_store_many, args=(i,)) for i in (0, 40, 80)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    stored = json.loads(tuning.cache_file("shared").read_text())
    assert stored == {f"kernel{i}": {"BLOCK": i} for i in range(120)}
