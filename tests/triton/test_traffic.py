"""The bytes a block moves on Triton, against the design and the roofline, at batch 256 in bfloat16.

Launchers run on meta tensors with the launches intercepted: only shapes matter.
"""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

from effnet_fast.kernels import configs, launchers, tuning
from effnet_fast.kernels.launch import intercept

from effnet_fast import dispatch
from effnet_fast.backend.traffic import count_traffic
from effnet_fast.bench import blocks as roofline_blocks
from effnet_fast.bench import roofline, tuner
from effnet_fast.models.config import BASE_STAGES, VARIANTS, Stage
from effnet_fast.ops import mbconv_kernels as blocks
from effnet_fast.ops.mbconv_backward import training_backward
from effnet_fast.ops.mbconv_types import Needs

BATCH, BYTES = 256, 2


def stages():
    size = 112
    for stage in BASE_STAGES:
        yield pytest.param(stage, size, id=f"k{stage.kernel_size}s{stage.stride} {stage.in_channels}")
        size //= stage.stride
        inner = stage._replace(in_channels=stage.out_channels, stride=1)
        if stage.repeats > 1:
            yield pytest.param(inner, size, id=f"k{stage.kernel_size}s1 {inner.in_channels} residual")


@pytest.fixture(autouse=True)
def _triton_on_meta():
    with dispatch.answering(lambda op, **facts: getattr(launchers, op)), intercept(lambda *launch: None):
        yield


class Sizes:
    """Elements of a block's tensors, named as in docs/design.md, and of its weights."""

    def __init__(self, stage, size):
        out = size // stage.stride
        c = int(stage.in_channels * stage.expand_ratio)
        self.expands = c != stage.in_channels
        self.x = BATCH * stage.in_channels * size**2
        self.e = BATCH * c * size**2
        self.d = BATCH * c * out**2
        self.p = BATCH * stage.out_channels * out**2
        self.w_expand = stage.in_channels * c * self.expands
        self.w_depthwise = c * stage.kernel_size**2
        self.w_project = c * stage.out_channels
        self.w_se = 2 * c * max(1, stage.in_channels // 4)
        self.residual = self.x if stage.stride == 1 and stage.in_channels == stage.out_channels else 0
        self.weights = self.w_expand + self.w_depthwise + self.w_project + self.w_se


@pytest.mark.parametrize("stage, size", list(stages()))
def test_inference(stage, size):
    """Expand, depthwise, squeeze-and-excite, project: e and d are written once and read once."""
    s = Sizes(stage, size)
    expected = (s.x + s.e) * s.expands + s.e + s.d + s.d + s.p + s.residual + s.weights
    traffic = inference_step(stage, size)
    assert traffic.total == pytest.approx(BYTES * expected, rel=0.05), traffic.by_kernel()


def fused_training(s, stage):
    """(elements moved with a kernel per gradient, with one kernel for both where that is what runs)."""
    source = s.e if s.expands else s.x
    forward = (s.x + s.e) * s.expands + source + s.d + s.d + s.d + s.p + 2 * s.p + s.residual + s.weights
    backward = 2 * s.p  # sums of the last BatchNorm
    backward += 2 * s.p + 2 * s.d + s.w_project  # project, input gradient
    backward += 2 * s.p + s.d  # project, weight gradient
    backward += 2 * s.d + 2 * source + s.w_depthwise  # depthwise, input gradient
    backward += 2 * s.d + source  # depthwise, weight gradient
    if s.expands:
        backward += 2 * s.e + s.x + s.residual + s.w_expand  # expand, input gradient
        backward += 2 * s.e + s.x  # expand, weight gradient
    else:
        backward += s.residual
    fused = merged = forward + backward + 2 * s.w_se
    limit = configs.CLASSES["pointwise_backward"][-1]
    if stage.out_channels <= limit:
        merged -= 2 * s.p + s.d
    if s.expands and int(stage.in_channels * stage.expand_ratio) <= limit:
        merged -= 2 * s.e + s.x
    return fused, merged


def inference_step(stage, size):
    x, weights, settings = tuner.random_block(stage, size, torch.bfloat16, BATCH, torch.device("meta"))
    with count_traffic() as traffic:
        blocks.inference(x, weights, settings, None)
    return traffic


def training_step(stage, size):
    x, weights, settings = tuner.random_block(stage, size, torch.bfloat16, BATCH, torch.device("meta"))
    with count_traffic() as traffic:
        y, saved = blocks.training_forward(x, weights, settings, None)
        needs = Needs(True, True, True, True)
        learnt = (weights.expand, weights.depthwise, weights.project)
        training_backward(torch.empty_like(y), x, saved, weights, settings, None, needs, learnt)
    return traffic


@pytest.mark.parametrize("stage, size", list(stages()))
def test_training(stage, size):
    """Every pass reads and writes its tensors once; what else moves is the vectors by image and channel.

    Those (the five sums of the project's backward, gate, pooled, their gradients: 29 reads and writes of fp32) are
    5 % of a 7x7 block and nothing of a 112x112 one; partial weight gradients may add a few per cent there.
    """
    s = Sizes(stage, size)
    _, merged = fused_training(s, stage)
    vectors = 29 * 2 * BATCH * int(stage.in_channels * stage.expand_ratio)
    traffic = training_step(stage, size)
    assert traffic.total == pytest.approx(BYTES * (merged + vectors), rel=0.07), traffic.by_kernel()


def test_training_of_the_network():
    """All stages together: within 5 % of the fused design."""
    total = fused_total = merged_total = 0
    for stage, size in (parameters.values for parameters in stages()):
        fused, merged = fused_training(Sizes(stage, size), stage)
        fused_total += BYTES * fused
        merged_total += BYTES * merged
        total += training_step(stage, size).total
    assert total == pytest.approx(merged_total, rel=0.05)
    assert total < fused_total


def counted_and_modelled(name, mode):
    """Bytes of a model's blocks at batch 256: as the launches count them, as the roofline's fused design has them."""
    step = {"infer": inference_step, "train": training_step}[mode]
    network = roofline_blocks.network(name)
    counted = Counter()
    for block in network.blocks:
        stage = Stage(
            block.channels // block.in_channels,
            *(block.kernel_size, block.stride, block.in_channels, block.out_channels, 1),
        )
        counted[stage, block.size] += 1
    total = sum(times * step(*shape).total for shape, times in counted.items())
    whole, ends = (
        BATCH * roofline.bytes_per_image(roofline.kernels(part, "fused", mode), BATCH, BYTES)
        for part in (network, network._replace(blocks=()))
    )
    return total, whole - ends


@pytest.mark.parametrize("name", VARIANTS)
def test_inference_against_the_roofline(name):
    """What the performance targets are computed from is what the launches move: whole models, blocks alone."""
    counted, modelled = counted_and_modelled(name, "infer")
    assert counted == pytest.approx(modelled, rel=0.05)


@pytest.mark.parametrize("name", VARIANTS)
def test_training_against_the_roofline(name):
    """The roofline has a kernel per gradient; one kernel for both, where that runs, moves less."""
    with tuning.force("pointwise_backward", None):
        counted, modelled = counted_and_modelled(name, "train")
    assert counted == pytest.approx(modelled, rel=0.05)
    merged, _ = counted_and_modelled(name, "train")
    assert 0.9 * modelled < merged < modelled


def test_counter_is_off_outside_and_nests():
    from effnet_fast.backend.traffic import record

    t = torch.empty(3, dtype=torch.float16)
    record("outside", [t], [])
    with count_traffic() as outer, count_traffic() as inner:
        record("k", [t, None], [t])
    assert outer.launches == inner.launches == [("k", 6, 6)]
    assert (outer.read, outer.written, outer.total, outer.by_kernel()) == (6, 6, 12, {"k": 12})
