"""1x1 convolution of every distinct shape: alone, and with BatchNorm, SiLU and pooling."""

from __future__ import annotations

import pytest

from benchmarks import cases

KIND = "pointwise"


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_plain(measure, shape, mode, provider):  # type: ignore[no-untyped-def]
    measure(cases.pointwise, shape, mode, provider)


def test_fused(measure, shape, provider):  # type: ignore[no-untyped-def]
    measure(cases.pointwise_fused, shape, "infer", provider)
