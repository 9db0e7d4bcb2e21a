"""Sizes that the compiler treats specially: an argument of 1 is a constant in a compiled kernel, not in the interpreter.

Only the front end runs, which is where such a kernel fails; no GPU is needed.
"""

import pytest
import torch

pytest.importorskip("triton")

from effnet_fast.kernels import launchers
from effnet_fast.kernels.launch import intercept
from effnet_fast.kernels.runtime import INTERPRET
from triton_offline.compiler import Launch, first_stage

from effnet_fast import dispatch
from effnet_fast.bench import tuner
from effnet_fast.models.config import Stage
from effnet_fast.ops import mbconv_kernels as blocks
from effnet_fast.ops.mbconv_backward import training_backward
from effnet_fast.ops.mbconv_types import Needs

pytestmark = pytest.mark.skipif(INTERPRET, reason="interpreted kernels cannot be compiled")

# batch, image size, stage: each makes other arguments 1 (images, pixels, rows, channels, units of eight channels, tiles).
CASES = {
    "one pixel": (3, 1, Stage(1, 3, 1, 8, 8, 1)),
    "one image": (1, 3, Stage(2, 5, 2, 4, 16, 1)),
    "one channel": (2, 4, Stage(1, 3, 1, 1, 1, 1)),
    "one of everything": (1, 1, Stage(2, 3, 2, 1, 1, 1)),
}


def block_launches(batch: int, size: int, stage: Stage) -> list[Launch]:
    """What a training step and an inference of a block launch, on meta tensors."""
    caught: list[Launch] = []
    x, weights, settings = tuner.random_block(stage, size, torch.float16, batch, torch.device("meta"))
    with intercept(lambda *launch: caught.append(Launch(*launch))):
        y, saved = blocks.training_forward(x, weights, settings, torch.empty(batch, device="meta"))
        needs = Needs(True, True, True, True)
        learnt = (weights.expand, weights.depthwise, weights.project)
        training_backward(y, x, saved, weights, settings, torch.empty(batch, device="meta"), needs, learnt)
        blocks.inference(x, weights, settings, None)
    return caught


@pytest.mark.parametrize("case", CASES)
def test_arguments_of_one(case: str) -> None:
    batch, size, stage = CASES[case]
    with dispatch.answering(lambda op, **facts: getattr(launchers, op)):
        launches = block_launches(batch, size, stage)
    assert any(type(value) is int and value == 1 for launch in launches for value in launch.arguments)
    for launch in launches:
        assert "tt.func public" in first_stage(launch, 90), launch.name
