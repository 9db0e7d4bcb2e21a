"""Squeeze-and-excite's gate of every distinct shape, inference and training."""

from __future__ import annotations

import pytest

from benchmarks import cases

KIND = "squeeze_excite"


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_squeeze_excite(measure, shape, mode, provider):  # type: ignore[no-untyped-def]
    measure(cases.squeeze_excite, shape, mode, provider)
