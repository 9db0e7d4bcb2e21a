"""The CPU's depthwise convolution against the reference, on every instruction set this machine can run."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from cpu_cases import DTYPES, EDGES, affine, double, image
from torch import Tensor

from effnet_fast.backend import cpu, native, reference
from effnet_fast.backend.reference.activations import ACTIVATIONS
from effnet_fast.tolerance import assert_accurate

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)

PLAIN = {"in_affine": None, "in_act": "none", "affine": None, "act": "none"}


def eager_depthwise(
    x: Tensor, weight: Tensor, stride: int, padding: tuple[int, ...], **fused: object
) -> Tensor:
    """The same as separate PyTorch calls in x's dtype: what the error is compared with."""
    if fused["in_affine"] is not None:
        scale, shift = (v.to(x.dtype)[:, None, None] for v in fused["in_affine"])  # type: ignore[attr-defined]
        x = x * scale + shift
    x = reference.activation(x, fused["in_act"])  # type: ignore[arg-type]
    z = F.conv2d(F.pad(x, padding), weight, stride=stride, groups=x.shape[1])
    if fused["affine"] is not None:
        scale, shift = (v.to(x.dtype)[:, None, None] for v in fused["affine"])  # type: ignore[attr-defined]
        z = z * scale + shift
    return reference.activation(z, fused["act"])  # type: ignore[arg-type]


def check_depthwise(
    x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int, int, int], **fused: object
) -> None:
    y, pooled, _ = cpu.depthwise(x, weight, stride, padding, pool=True, **fused)  # type: ignore[arg-type]
    exact = {k: v if isinstance(v, str) else double(v) for k, v in fused.items()}  # type: ignore[arg-type]
    truth = reference.depthwise(x.double(), weight.double(), stride, padding, pool=True, **exact)  # type: ignore[arg-type]
    assert y.dtype == x.dtype and y.stride() == truth.y.stride()
    if not y.numel():
        assert y.shape == truth.y.shape and pooled is not None and pooled.shape == truth.pooled.shape
        return
    eager = eager_depthwise(x, weight, stride, padding, **fused)
    assert_accurate("y", y, eager, truth.y)
    # The mean is of unrounded values and in fp32, whatever the dtype of y.
    mean = reference.depthwise(x.float(), weight.float(), stride, padding, pool=True, **fused).pooled  # type: ignore[arg-type]
    assert_accurate("pooled", pooled, mean, truth.pooled, torch.float32)


def random_case(draw: random.Random) -> dict[str, object]:
    k = draw.choice((3, 5, 7))
    padding = tuple(draw.choice((0, 1, 2, k // 2, k // 2, k // 2, k - 1, k + 2)) for _ in range(4))
    c = draw.choice((1, 2, 3, 8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 65, 96, 136))
    h = draw.randint(max(1, k - padding[2] - padding[3]), 26)
    w = draw.randint(max(1, k - padding[0] - padding[1]), 26)
    return {
        "shape": (draw.choice((0, 1, 1, 1, 2, 3)), c, h, w),
        "kernel": k,
        "stride": draw.choice((1, 2)),
        "padding": padding,
        "dtype": draw.choice(DTYPES),
        "in_affine": draw.random() < 0.5,
        "in_act": draw.choice(ACTIVATIONS),
        "affine": draw.random() < 0.6,
        "act": draw.choice(ACTIVATIONS),
    }


@pytest.mark.parametrize("block", range(6))
def test_depthwise_on_random_shapes(isa: str, block: int) -> None:
    """6 x 40 cases; every instruction set sees the same ones."""
    draw = random.Random(block)
    for _ in range(40):
        case = random_case(draw)
        n, c, h, w = case["shape"]  # type: ignore[misc]
        k, dtype = case["kernel"], case["dtype"]
        check_depthwise(
            image(n, c, h, w, dtype),  # type: ignore[arg-type]
            (torch.randn(c, 1, k, k) / k).to(dtype),  # type: ignore[arg-type, call-overload]
            case["stride"],  # type: ignore[arg-type]
            case["padding"],  # type: ignore[arg-type]
            in_affine=affine(c) if case["in_affine"] else None,
            in_act=case["in_act"],
            affine=affine(c) if case["affine"] else None,
            act=case["act"],
        )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("shape, padding", EDGES.values(), ids=EDGES)
def test_depthwise_where_padding_meets_size(
    shape: tuple[int, int, int, int], padding: tuple[int, int, int, int], k: int, stride: int
) -> None:
    """Windows that lie in the padding altogether, images smaller than the kernel."""
    weight = torch.randn(shape[1], 1, k, k) / k
    check_depthwise(image(*shape), weight, stride, padding, **PLAIN)
    fused = {"in_affine": affine(shape[1]), "in_act": "silu", "affine": affine(shape[1]), "act": "hardswish"}
    check_depthwise(image(*shape), weight, stride, padding, **fused)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_depthwise_reads_slices_and_writes_nothing_else(dtype: torch.dtype, offset: int) -> None:
    """x inside a larger NaN-filled image, at an odd address: NaN would show any tap outside the slice."""
    c, h, w = 19, 9, 11
    buffer = torch.full((offset + 2 * 14 * 16 * 23,), float("nan"), dtype=dtype)
    large = buffer[offset:].view(2, 14, 16, 23).permute(0, 3, 1, 2)
    x = large[:, 2 : 2 + c, 3 : 3 + h, 2 : 2 + w]
    x.copy_(torch.randn(2, c, h, w))
    before = buffer.clone()
    assert x.storage_offset() % 16 and not x.is_contiguous(memory_format=torch.channels_last)
    for fused in (PLAIN, {**PLAIN, "in_act": "silu", "act": "relu6"}):
        check_depthwise(x, torch.randn(c, 1, 5, 5).to(dtype), 2, (1, 2, 2, 1), **fused)
    assert torch.equal(buffer.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("layout", ["contiguous", "expanded", "transposed"])
def test_depthwise_takes_any_strides(layout: str) -> None:
    x = {
        "contiguous": torch.randn(2, 20, 8, 9),
        "expanded": torch.randn(1, 1, 8, 9).expand(2, 20, 8, 9),
        "transposed": image(2, 20, 9, 8).transpose(2, 3),
    }[layout]
    weight = torch.randn(3, 3, 20, 1).permute(2, 3, 0, 1)
    check_depthwise(x, weight, 1, (1, 1, 1, 1), **PLAIN)


def test_depthwise_writes_every_output(poisoned_native_memory: None) -> None:
    for dtype in DTYPES:
        y, pooled, _ = cpu.depthwise(
            image(2, 21, 9, 7, dtype),
            torch.randn(21, 1, 3, 3).to(dtype),
            2,
            (1, 0, 0, 1),
            act="silu",
            pool=True,
        )
        assert pooled is not None and y.isfinite().all() and pooled.isfinite().all()


def test_one_nan_stays_in_its_window() -> None:
    x = image(2, 33, 8, 8)
    x[0, 7, 4, 4] = float("nan")
    y, pooled, _ = cpu.depthwise(x, torch.ones(33, 1, 3, 3), 1, (1, 1, 1, 1), act="silu", pool=True)
    expected = torch.zeros(2, 33, 8, 8, dtype=torch.bool)
    expected[0, 7, 3:6, 3:6] = True
    assert pooled is not None
    assert torch.equal(y.isnan(), expected) and torch.equal(pooled.isnan(), expected.any(-1).any(-1))
