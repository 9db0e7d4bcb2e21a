"""The CUDA C++ backend's answers, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effnet_fast.backend import cuda, native


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (["75", "80", "90", "100", "120"], (8, 0), True),
        (["80"], (8, 6), True),  # machine code of a smaller minor version
        (["86"], (8, 0), False),
        (["90"], (8, 0), False),
        (["75", "80"], (9, 0), True),  # PTX of the newest
        (["75", "100"], (8, 9), False),
        (["90a"], (9, 0), True),
        (["90a"], (10, 0), False),
        (["100f"], (10, 3), True),
        (["80", "100f"], (12, 0), False),
        (["80", "90a"], (8, 9), True),
    ],
)
def test_which_gpus_a_library_runs_on(archs: list[str], capability: tuple[int, int], expected: bool) -> None:
    assert cuda.has_code(archs, capability) is expected


def test_gpu_the_library_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason, and not an error at the launch."""
    facts: dict[str, Any] = {"archs": ["90"]}
    monkeypatch.setattr(native, "status", lambda product: native.Status(True, None, "", "", facts))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    ok, reason = cuda.can_run("depthwise", torch.device("cuda:0"), torch.float32)
    assert not ok
    assert (
        reason
        == "its library is built for sm_90 and cuda:0 is sm_80; to add it: effnet-fast build --archs 80"
    )
    capability = (9, 0)
    assert cuda.can_run("depthwise", torch.device("cuda:0"), torch.float32) == (True, "")


def test_called_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda product: (product != "_cuda", "not built"))
    cuda._kernels.cache_clear()
    with pytest.raises(ImportError, match="native library _cuda is missing: not built"):
        cuda.squeeze_excite(*[torch.zeros(2, 2)] * 5)
