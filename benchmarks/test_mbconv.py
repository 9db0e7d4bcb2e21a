"""The whole MBConv block of every distinct shape, inference and training."""

from __future__ import annotations

import pytest

from benchmarks import cases

KIND = "mbconv"


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_mbconv(measure, shape, mode, provider):  # type: ignore[no-untyped-def]
    measure(cases.mbconv, shape, mode, provider)
