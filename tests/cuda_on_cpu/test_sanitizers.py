"""Every kernel template under AddressSanitizer (memory) and ThreadSanitizer (races between a block's threads).

Shared memory has exactly the size a launch asked for and starts as NaN; tensors have exactly their size.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from . import harness, problems


def _problems() -> list[problems.Problem]:
    given = []
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype, kernel, stride in itertools.product(dtypes, (3, 5, 7), (1, 2)):
        half = kernel // 2
        # Whole vectors of channels and none; one strip and several.
        for shape in ((2, 40, 5, 9), (1, 3, 4, 2)):
            given += [
                problems.depthwise(dtype, kernel, stride, shape, (half,) * 4, training=shape[0] == 2),
                problems.depthwise_backward(
                    dtype, kernel, stride, shape, (half,) * 4, kind="block" if shape[0] == 2 else "first"
                ),
            ]
    for dtype in dtypes:
        # Four images a block from two multiprocessors on, one below.
        given += [
            problems.squeeze_excite(dtype, images, 33, 5, backward=False, acts=("silu", "sigmoid"))
            for images in (1, 5)
        ]
    given.append(problems.squeeze_excite(torch.bfloat16, 3, 40, 8, backward=True, acts=("silu", "sigmoid")))
    return given


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("flavour", ["address", "thread"])
def test_every_template(flavour: str, tmp_path: Path) -> None:
    if harness.compiler() is None:
        pytest.skip("needs g++")
    given = _problems()
    results = harness.run(harness.build(flavour), [harness.case(p) for p in given], tmp_path)
    for problem, got in zip(given, results, strict=True):
        problems.check(problem, got)
