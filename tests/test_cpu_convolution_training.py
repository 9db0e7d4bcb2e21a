"""The CPU backend's convolutions in training against the reference, on every instruction set this machine can run."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from cpu_cases import DTYPES, EDGES, affine, assert_statistics, bn_grad, compare, image, norm

from effnet_fast.backend import native
from effnet_fast.backend.reference.activations import ACTIVATIONS

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)


def random_stencil(draw: random.Random) -> tuple[tuple[Any, ...], dict[str, Any]]:
    k, stride, dtype = draw.choice((3, 5, 7)), draw.choice((1, 2)), draw.choice(DTYPES)
    padding = tuple(draw.choice((0, 1, 2, k // 2, k // 2, k // 2, k - 1, k + 2)) for _ in range(4))
    n = draw.choice((0, 1, 1, 2, 3))
    c = draw.choice((1, 2, 3, 8, 15, 16, 17, 24, 31, 32, 33, 40, 65, 96))
    h = draw.randint(max(1, k - padding[2] - padding[3]), 20)
    w = draw.randint(max(1, k - padding[0] - padding[1]), 20)
    out = ((h + sum(padding[2:]) - k) // stride + 1, (w + sum(padding[:2]) - k) // stride + 1)
    args = (
        *(image(n, c, *out, dtype), image(n, c, h, w, dtype), (torch.randn(c, 1, k, k) / k).to(dtype)),
        *(stride, padding),
    )
    facts: dict[str, Any] = {"need_dx": draw.random() < 0.8, "need_dw": draw.random() < 0.8}
    if draw.random() < 0.7:
        facts |= {"z": image(n, c, *out, dtype), "affine": affine(c), "act": draw.choice(ACTIVATIONS)}
        if draw.random() < 0.8:
            facts["grad"] = bn_grad(c)
    if draw.random() < 0.6:
        facts |= {"gate": torch.rand(n, c), "pool_grad": torch.randn(n, c) / 10}
    if draw.random() < 0.6:
        facts |= {"in_affine": affine(c), "in_act": draw.choice(ACTIVATIONS), "in_norm": norm(c)}
    elif draw.random() < 0.5:
        facts["residual_grad"] = image(n, c, h, w, dtype)
    return args, facts


@pytest.mark.parametrize("block", range(6))
def test_depthwise_backward_on_random_shapes(isa: str, block: int) -> None:
    """6 x 40 cases; every instruction set sees the same ones."""
    draw = random.Random(block)
    for _ in range(40):
        args, facts = random_stencil(draw)
        compare("depthwise_backward", args, facts)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize(
    "shape, padding",
    [*EDGES.values(), ((4, 33, 31, 8), (1, 2, 2, 1))],
    ids=[*EDGES, "several-bands"],
)
def test_depthwise_backward_where_padding_meets_size(
    shape: tuple[int, int, int, int], padding: tuple[int, int, int, int], k: int, stride: int
) -> None:
    n, c, h, w = shape
    if h + sum(padding[2:]) < k or w + sum(padding[:2]) < k:
        pytest.skip("smaller than the kernel")
    out = ((h + sum(padding[2:]) - k) // stride + 1, (w + sum(padding[:2]) - k) // stride + 1)
    args = (image(n, c, *out), image(*shape), torch.randn(c, 1, k, k), stride, padding)
    compare("depthwise_backward", args, {})
    facts = {"z": image(n, c, *out), "affine": affine(c), "act": "silu", "grad": bn_grad(c)}
    facts |= {"in_affine": affine(c), "in_act": "silu", "in_norm": norm(c), "gate": torch.rand(n, c)}
    compare("depthwise_backward", args, facts)


# The last two: several bands of an image in a part, several images in a run.
POINTWISE = [
    (1, 16, 9, 9),
    (3, 24, 7, 5),
    (2, 7, 1, 1),
    (0, 8, 4, 4),
    (1, 200, 2, 2),
    (5, 33, 40, 41),
    (70, 50, 5, 5),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", POINTWISE)
def test_pointwise_backward(isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    n, c, h, w = shape
    for out_channels in (3, 40):
        dy, z = image(n, out_channels, h, w, dtype), image(n, out_channels, h, w, dtype)
        args = (dy, image(*shape, dtype), (torch.randn(out_channels, c) / c**0.5).to(dtype))
        grad = {"z": z, "grad": bn_grad(out_channels)}
        before = {"in_affine": affine(c), "in_act": "silu", "in_norm": norm(c), "gate": torch.rand(n, c)}
        for facts in (
            {},
            {**grad, "residual_grad": image(*shape, dtype)},
            {"row_scale": torch.rand(n), "need_dw": False},
            {**grad, **before, "row_scale": torch.rand(n)},
            {**grad, **before, "gate": None, "in_act": "hardswish", "need_dx": False, "need_dw": False},
            {**grad, "gate": before["gate"], "in_act": "relu", "need_dx": False},
        ):
            if dtype == torch.float32:
                compare("pointwise_backward", args, facts)
            else:
                # dz and G are rounded to bf16 between the GEMMs, as PyTorch rounds them.
                compare("pointwise_backward", args, facts, ("dx", "dweight", "sums"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", POINTWISE)
def test_pointwise_forward_with_statistics(
    isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    n, c, _, _ = shape
    args = (image(*shape, dtype), (torch.randn(40, c) / c**0.5).to(dtype))
    for facts in (
        {},
        {"in_affine": affine(c), "in_act": "silu", "gate": torch.rand(n, c)},
        {"gate": torch.rand(n, c)},
    ):
        for stats in (True, False):
            got = compare("pointwise", args, {**facts, "stats": stats}, ("y",))
            if stats and n:
                assert_statistics(got.y, got.stats)
