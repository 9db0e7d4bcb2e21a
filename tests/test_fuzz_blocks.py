"""The two large ops (the block; convolution, BatchNorm and activation) on random settings, against PyTorch in fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import compositions
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from op_cases import CHANNELS, RUNG, Inputs, Memory, Run, gradients, judge, memories
from torch import Tensor

from effnet_fast import ops, use_backend
from effnet_fast.backend import native
from effnet_fast.tolerance import error

Fuzz = Callable[..., None]
ACTS = ("silu", "relu", "relu6", "hardswish", "none")
EPS = 1e-3


def norm(inputs: Inputs, channels: int, learnt: bool) -> None:
    """Weight, bias, running mean, running variance."""
    for mean in (1.0, 0.0):
        inputs.vector(channels, mean=mean) if learnt else inputs.nothing()
    inputs.vector(channels, differentiable=False)
    inputs.vector(channels, positive=True, differentiable=False)


def batch_norm(t: list[Tensor | None], training: bool) -> ops.BatchNorm:
    return ops.BatchNorm(*t, EPS, training)


class Layer(NamedTuple):
    memory: Memory
    shape: tuple[int, int, int, int]
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    act: str
    learnt: bool
    training: bool
    recompute: bool


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    pointwise = draw(st.booleans())
    kernel = (1, 1) if pointwise else (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    one = st.tuples(st.just(1), st.just(1)) if pointwise else st.tuples(st.integers(1, 2), st.integers(1, 3))
    return Layer(
        draw(memories(exact=False)),
        (
            draw(st.integers(2, 3)),
            draw(st.sampled_from((1, 3, 4, 17))),
            draw(st.integers(kernel[0], 13)),
            draw(st.integers(kernel[1], 13)),
        ),
        draw(st.sampled_from(CHANNELS)),
        kernel,
        draw(one),
        (0, 0) if pointwise else draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        draw(st.sampled_from(ACTS)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def check_layer(case: Layer, backend: str, dtype: torch.dtype) -> None:
    inputs = Inputs(case.memory, dtype)
    cin = case.shape[1]
    inputs.tensor(*case.shape)
    inputs.tensor(case.channels, cin, *case.kernel, spread=(cin * case.kernel[0]) ** -0.5)
    norm(inputs, case.channels, case.learnt)
    facts = {"stride": case.stride, "padding": case.padding, "act": case.act}

    def op(t: list[Tensor | None]) -> list[Tensor]:
        bn = batch_norm(t[2:], case.training)
        return [ops.conv_bn_act(*t[:2], bn, recompute=case.recompute, **facts).y]

    def composed(t: list[Tensor | None]) -> list[Tensor]:
        return compositions.conv_bn_act(*t[:2], t[2:], training=case.training, eps=EPS, **facts)

    judge(backend, inputs, op, composed)


@RUNG
def test_conv_bn_act(fuzz: Fuzz, backend: str, dtype: torch.dtype) -> None:
    fuzz(lambda case: check_layer(case, backend, dtype), layers(), 40)


@RUNG
@pytest.mark.parametrize("training", [False, True])
def test_one_channel_and_a_kernel_of_one_row(backend: str, dtype: torch.dtype, training: bool) -> None:
    """Found by the fuzzer: PyTorch's convolution reads beside such images where they are channels_last."""
    memory = Memory(0, ("dense", "channels_last", "dense"), 0, False)
    shape = ((2, 1, 5, 2), 15, (1, 2), (1, 3), (0, 0))
    check_layer(Layer(memory, *shape, "silu", False, training, False), backend, dtype)


class Block(NamedTuple):
    memory: Memory
    images: int
    size: tuple[int, int]
    channels: tuple[int, int, int]  # in, expanded, out
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    acts: tuple[str, str, str, str]
    hidden: int  # 0: no squeeze-and-excite
    biases: tuple[bool, bool]
    residual: bool
    row_scale: bool
    learnt: bool
    training: tuple[bool, bool, bool]
    recompute: bool


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    kernel, residual = draw(st.sampled_from((3, 5, 7))), draw(st.booleans())
    side = st.integers(0, kernel // 2 + 1)
    padding = (kernel // 2,) * 4 if residual else tuple(draw(side) for _ in range(4))
    size = tuple(draw(st.integers(max(2, kernel - sum(p)), 13)) for p in (padding[2:], padding[:2]))
    cin = draw(st.sampled_from((1, 3, 8, 16, 24)))
    cout = cin if residual else draw(st.sampled_from((2, 8, 17, 40)))
    expanded = draw(st.sampled_from((cin, 2 * cin, 4 * cin + 1, 6 * cin)))
    act = st.sampled_from(ACTS)
    all_or_some = st.one_of(st.just((True,) * 3), st.just((False,) * 3), st.tuples(*[st.booleans()] * 3))
    return Block(
        draw(memories(exact=False)),
        draw(st.integers(2, 4)),
        size,  # type: ignore[arg-type]
        (cin, expanded, cout),
        kernel,
        1 if residual else draw(st.sampled_from((1, 2))),
        padding,  # type: ignore[arg-type]
        (draw(act), draw(act), draw(act), draw(st.sampled_from(("sigmoid", "hardsigmoid")))),
        draw(st.sampled_from((0, 1, 6, 10))),
        (draw(st.booleans()), draw(st.booleans())),
        residual,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(all_or_some),
        draw(st.booleans()),
    )


def place(case: Block, dtype: torch.dtype) -> Inputs:
    """Leaves in this order: x, row_scale, three times convolution and BatchNorm, squeeze-and-excite."""
    inputs = Inputs(case.memory, dtype)
    cin, c, cout = case.channels
    inputs.tensor(case.images, cin, *case.size)
    # No gradient flows to the factor of stochastic depth.
    if case.row_scale:
        inputs.vector(case.images, mean=1.0, differentiable=False)
    else:
        inputs.nothing()
    if c == cin:
        for _ in range(5):
            inputs.nothing()
    else:
        inputs.tensor(c, cin, spread=cin**-0.5)
        norm(inputs, c, case.learnt)
    inputs.tensor(c, 1, case.kernel, case.kernel, spread=1 / case.kernel)
    norm(inputs, c, case.learnt)
    inputs.tensor(cout, c, spread=c**-0.5)
    norm(inputs, cout, case.learnt)
    r = case.hidden
    for shape, wanted in (((r, c), True), ((r,), case.biases[0]), ((c, r), True), ((c,), case.biases[1])):
        inputs.vector(*shape, spread=shape[-1] ** -0.5) if r and wanted else inputs.nothing()
    return inputs


def computations(case: Block) -> tuple[Run, Run]:
    """The block as the package's op and as PyTorch's functions, on the tensors of :func:`place`."""
    expands = case.channels[0] != case.channels[1]
    settings = ops.Settings(case.stride, case.padding, *case.acts, case.residual, case.recompute and expands)

    def op(t: list[Tensor | None]) -> list[Tensor]:
        x, row_scale, *rest = t
        flags = [expands and case.training[0], *case.training[1:]]
        parts: list[object] = []
        for i, training in enumerate(flags):
            conv, *vectors = rest[5 * i : 5 * i + 5]
            parts += [conv, None if conv is None else batch_norm(vectors, training)]
        return [ops.mbconv(x, ops.Weights(*parts, *rest[15:]), settings, row_scale).y]

    def composed(t: list[Tensor | None]) -> list[Tensor]:
        x, row_scale, *rest = t
        return compositions.mbconv(
            x,
            rest[0:15:5],
            [rest[5 * i + 1 : 5 * i + 5] for i in range(3)],
            rest[15:],
            row_scale,
            stride=case.stride,
            padding=case.padding,
            acts=case.acts,
            residual=case.residual,
            training=case.training,
            eps=EPS,
        )

    return op, composed


@RUNG
def test_mbconv(fuzz: Fuzz, backend: str, dtype: torch.dtype) -> None:
    def check(case: Block) -> None:
        height, width = (
            (size + sum(pads) - case.kernel) // case.stride + 1
            for size, pads in zip(case.size, (case.padding[2:], case.padding[:2]), strict=True)
        )
        # Statistics of two values are +-1 whatever the values: no test of anything, and rounding decides.
        assume(case.images * height * width > 3)
        judge(backend, place(case, dtype), *computations(case))

    fuzz(check, blocks(), 40)


def one_channel(seed: int) -> Block:
    """The gradient of the projection's only weight is zero but for BatchNorm's eps: 16 large terms that cancel."""
    memory, plain = Memory(seed, ("dense",) * 3, 0, False), (False, False)
    acts, training = ("silu", "silu", "silu", "sigmoid"), (True, True, True)
    shape = (4, (2, 2), (1, 1, 1), 3, 1, (1, 1, 1, 1))
    return Block(memory, *shape, acts, 0, plain, True, False, True, training, False)


@RUNG
def test_gradients_that_cancel(backend: str, dtype: torch.dtype) -> None:
    """Found by the fuzzer with seed 0, in fp32 on the reference."""
    for seed in range(8):
        judge(backend, place(one_channel(seed), dtype), *computations(one_channel(seed)))


@RUNG
def test_images_of_width_1_with_gradients_in_another_layout(backend: str, dtype: torch.dtype) -> None:
    """Found by the fuzzer: PyTorch's BatchNorm takes such gradients for others and cannot be the oracle."""
    shape = (2, (4, 3), (1, 1, 2), 3, 1, (0, 0, 0, 0))
    acts, training, plain = ("silu", "silu", "silu", "sigmoid"), (True, True, True), (False, False)
    memory = Memory(184, ("dense", "permuted", "permuted"), 0, False)
    case = Block(memory, *shape, acts, 0, plain, False, False, False, training, False)
    judge(backend, place(case, dtype), *computations(case))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_rounding_errors_of_cancelling_gradients_are_pytorchs(backend: str) -> None:
    """What allows the limit above: over many draws ours are no larger, whatever luck one draw has."""
    if backend == "cpu" and not native.available("_ops")[0]:
        pytest.skip("needs the native library")
    squares = [0.0, 0.0]
    for seed in range(100):
        op, composed = computations(one_channel(seed))
        inputs = place(one_channel(seed), torch.float32)
        leaves = [None if t is None else t.requires_grad_(t.dim() > 1) for t in inputs.leaves]
        dy = torch.randn(4, 1, 2, 2)
        wide = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in leaves]
        truth = gradients(composed, wide, [dy.double()])[-1]
        with use_backend(backend):
            ours = gradients(op, leaves, [dy])[-1]
        for i, got in enumerate((ours, gradients(composed, leaves, [dy])[-1])):
            squares[i] += error(got, truth) ** 2  # type: ignore[arg-type]
    assert squares[0] <= 2.0**2 * squares[1]
