"""Every op on random shapes, layouts, offsets, paddings, types and activations, forward and backward, against fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import compositions
import pytest
import torch
from hypothesis import strategies as st
from op_cases import CHANNELS, RUNG, Inputs, Memory, judge, memories
from torch import Tensor

from effnet_fast import ops
from effnet_fast.backend.reference import ACTIVATIONS

Fuzz = Callable[..., None]


def pair(inputs: Inputs, channels: int, wanted: bool) -> None:
    for integers, mean in (((1, 2, -1), 1.0), ((-2, -1, 0, 1, 2), 0.0)):
        if wanted:
            inputs.vector(channels, integers=integers, mean=mean)
        else:
            inputs.nothing()


def both(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if a is None or b is None else (a, b)


def shown(out: ops.ConvBNActOut | tuple[Tensor | None, ...]) -> list[Tensor]:
    return [t for t in out if t is not None]


class Depthwise(NamedTuple):
    memory: Memory
    shape: tuple[int, int, int, int]
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    in_affine: bool
    in_act: str
    affine: bool
    act: str
    pool: bool
    stats: bool


@st.composite
def depthwise_cases(draw: st.DrawFn) -> Depthwise:
    kernel = draw(st.sampled_from((3, 5, 7)))
    side = st.sampled_from((0, 1, kernel // 2, kernel // 2, kernel - 1, kernel + 2))
    padding = tuple(draw(side) for _ in range(4))
    height, width = (draw(st.integers(max(1, kernel - sum(pads)), 19)) for pads in (padding[2:], padding[:2]))
    affine, act = draw(st.booleans()), draw(st.sampled_from(ACTIVATIONS))
    return Depthwise(
        draw(memories()),
        (draw(st.integers(1, 3)), draw(st.sampled_from(CHANNELS)), height, width),
        kernel,
        draw(st.sampled_from((1, 2))),
        padding,  # type: ignore[arg-type]
        draw(st.booleans()),
        draw(st.sampled_from(ACTIVATIONS)),
        affine,
        act,
        draw(st.booleans()),
        draw(st.booleans()) and not affine and act == "none",
    )


@RUNG
def test_depthwise(fuzz: Fuzz, backend: str, dtype: torch.dtype) -> None:
    def check(case: Depthwise) -> None:
        inputs = Inputs(case.memory, dtype)
        channels = case.shape[1]
        inputs.tensor(*case.shape)
        inputs.tensor(channels, 1, case.kernel, case.kernel, spread=1 / case.kernel)
        pair(inputs, channels, case.in_affine)
        pair(inputs, channels, case.affine)
        facts = {"in_act": case.in_act, "act": case.act, "pool": case.pool, "stats": case.stats}

        def op(t: list[Tensor | None]) -> list[Tensor]:
            x, weight = t[:2]
            affines = {"in_affine": both(*t[2:4]), "affine": both(*t[4:6])}
            return shown(ops.depthwise(x, weight, case.stride, case.padding, **affines, **facts))

        def composed(t: list[Tensor | None]) -> list[Tensor]:
            affines = both(*t[2:4]), both(*t[4:6])
            return compositions.depthwise(*t[:2], *affines, stride=case.stride, padding=case.padding, **facts)

        judge(backend, inputs, op, composed, (case.in_act, case.act))

    fuzz(check, depthwise_cases(), 50)


class Pointwise(NamedTuple):
    memory: Memory
    shape: tuple[int, int, int, int]
    channels: int
    square: bool  # weight [Cout, Cin, 1, 1]
    in_affine: bool
    in_act: str
    gate: bool
    affine: bool
    act: str
    row_scale: bool
    residual: bool
    pool: bool
    stats: bool


@st.composite
def pointwise_cases(draw: st.DrawFn) -> Pointwise:
    flag = st.booleans()
    plain = draw(flag)
    epilogue = [not plain and draw(flag) for _ in range(3)]
    act = "none" if plain else draw(st.sampled_from(ACTIVATIONS))
    return Pointwise(
        draw(memories()),
        (
            draw(st.integers(1, 3)),
            draw(st.sampled_from(CHANNELS)),
            draw(st.integers(1, 11)),
            draw(st.integers(1, 11)),
        ),
        draw(st.sampled_from(CHANNELS)),
        draw(flag),
        draw(flag),
        draw(st.sampled_from(ACTIVATIONS)),
        draw(flag),
        epilogue[0],
        act,
        *epilogue[1:],
        draw(flag),
        plain and draw(flag),
    )


@RUNG
def test_pointwise(fuzz: Fuzz, backend: str, dtype: torch.dtype) -> None:
    def check(case: Pointwise) -> None:
        inputs = Inputs(case.memory, dtype)
        n, cin, height, width = case.shape
        inputs.tensor(*case.shape)
        inputs.tensor(case.channels, cin, spread=cin**-0.5)
        pair(inputs, cin, case.in_affine)
        pair(inputs, case.channels, case.affine)
        inputs.vector(n, cin, integers=(0, 1, 2)) if case.gate else inputs.nothing()
        inputs.vector(n, integers=(0, 1, 2)) if case.row_scale else inputs.nothing()
        inputs.tensor(n, case.channels, height, width) if case.residual else inputs.nothing()
        facts = {"in_act": case.in_act, "act": case.act, "pool": case.pool, "stats": case.stats}

        def op(t: list[Tensor | None]) -> list[Tensor]:
            x, weight = t[:2]
            extra = dict(zip(("gate", "row_scale", "residual"), t[6:], strict=True))
            affines = {"in_affine": both(*t[2:4]), "affine": both(*t[4:6])}
            weight = weight[:, :, None, None] if case.square else weight
            return shown(ops.pointwise(x, weight, **affines, **extra, **facts))

        def composed(t: list[Tensor | None]) -> list[Tensor]:
            return compositions.pointwise(*t[:2], both(*t[2:4]), both(*t[4:6]), *t[6:], **facts)

        judge(backend, inputs, op, composed, (case.in_act, case.act))

    fuzz(check, pointwise_cases(), 60)


class SqueezeExcite(NamedTuple):
    memory: Memory
    images: int
    channels: int
    hidden: int
    biases: tuple[bool, bool]
    act: str
    gate: str


VECTORS_ONLY = pytest.mark.parametrize(
    "backend, dtype", [("cpu", torch.float32), ("reference", torch.float64), ("reference", torch.float32)]
)


@VECTORS_ONLY
def test_squeeze_excite(fuzz: Fuzz, backend: str, dtype: torch.dtype) -> None:
    def check(case: SqueezeExcite) -> None:
        inputs = Inputs(case.memory, dtype)
        c, r = case.channels, case.hidden
        inputs.vector(case.images, c, spread=1.0)
        for shape, wanted in (((r, c), True), ((r,), case.biases[0]), ((c, r), True), ((c,), case.biases[1])):
            inputs.vector(*shape, spread=shape[-1] ** -0.5) if wanted else inputs.nothing()
        judge(
            *(backend, inputs),
            lambda t: [ops.squeeze_excite(*t, case.act, case.gate)],
            lambda t: compositions.squeeze_excite(*t, act=case.act, gate=case.gate),
            (case.act, case.gate),
        )

    cases = st.builds(
        SqueezeExcite,
        memories(),
        st.integers(1, 9),
        st.sampled_from(CHANNELS),
        st.integers(1, 20),
        st.tuples(st.booleans(), st.booleans()),
        st.sampled_from(ACTIVATIONS),
        st.sampled_from(("sigmoid", "hardsigmoid")),
    )
    fuzz(check, cases, 40)


class Finalize(NamedTuple):
    memory: Memory
    channels: int
    weight: bool
    bias: bool
    eps: float


@VECTORS_ONLY
def test_batch_norm_finalize(fuzz: Fuzz, backend: str, dtype: torch.dtype) -> None:
    def check(case: Finalize) -> None:
        inputs = Inputs(case.memory, dtype)
        inputs.vector(case.channels)
        inputs.vector(case.channels, positive=True)
        inputs.vector(case.channels) if case.weight else inputs.nothing()
        inputs.vector(case.channels) if case.bias else inputs.nothing()

        def op(t: list[Tensor | None]) -> list[Tensor]:
            return [torch.stack(ops.batch_norm_finalize(torch.stack(t[:2]), *t[2:], case.eps))]

        def composed(t: list[Tensor | None]) -> list[Tensor]:
            mean, var, weight, bias = t
            scale = (var + case.eps).rsqrt() * (1 if weight is None else weight)
            return [torch.stack([scale, (0 if bias is None else bias) - mean * scale])]

        judge(backend, inputs, op, composed)

    eps = st.sampled_from((1e-5, 1e-3, 0.1))
    cases = st.builds(Finalize, memories(), st.sampled_from(CHANNELS), st.booleans(), st.booleans(), eps)
    fuzz(check, cases, 40)
