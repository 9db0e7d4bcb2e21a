"""The CPU backend's training kernels against the reference, on every instruction set this machine can run."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from patched_blocks import BLOCKS, pair
from torch import Tensor

import effnet_fast
from effnet_fast.backend import cpu, native, reference
from effnet_fast.backend.cpu.entry_points import kernels
from effnet_fast.backend.reference.activations import ACTIVATIONS
from effnet_fast.tolerance import allowed, assert_accurate, error
from effnet_fast.types import Affine, BatchNormGrad, Norm

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)

DTYPES = (torch.float32, torch.bfloat16)


def image(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=torch.channels_last)


def affine(c: int) -> Affine:
    return Affine(torch.rand(c) + 0.5, torch.randn(c))


def norm(c: int) -> Norm:
    return Norm(torch.randn(c), torch.rand(c) + 0.5)


def bn_grad(c: int) -> BatchNormGrad:
    return BatchNormGrad(torch.rand(c) + 0.5, torch.randn(c) / 4, torch.randn(c) / 4, torch.randn(c))


def converted(value: Any, dtype: torch.dtype) -> Any:
    """Every tensor inside in ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(v.to(dtype) for v in value))
    return value


def assert_within_twice(name: str, got: Tensor, baseline: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Twice what tolerance.py allows: of a chain of roundings (no fused multiply-add on the baseline, a whole block's
    gradients) the largest error over a few channels is a matter of luck on either side."""
    limit = 2 * allowed(baseline, truth, dtype)
    assert error(got, truth) <= limit, f"{name}: error {error(got, truth):.3e} exceeds {limit:.3e} ({dtype})"


def compare(op: str, args: tuple[Any, ...], facts: dict[str, Any], rounded: tuple[str, ...] = ("dx",)) -> Any:
    """The op on the CPU backend against fp64, judged by the reference in fp32 stored in the inputs' dtype.

    ``rounded`` names outputs that carry the rounding of the storage dtype; the others are fp32 results.
    """
    got = getattr(cpu, op)(*args, **facts)
    dtype = args[0].dtype
    exact = {k: converted(v, torch.float64) for k, v in facts.items()}
    truth = getattr(reference, op)(*(converted(a, torch.float64) for a in args), **exact)
    baseline = getattr(reference, op)(*args, **facts)
    for name in truth._fields:
        a, b, t = (getattr(out, name) for out in (got, baseline, truth))
        assert (a is None) == (t is None), name
        if t is None or name == "stats":
            continue
        if name == "sums" and t.dim() == 3 and t.shape[1] == 2:
            a, b, t = (v.sum(0) for v in (a, b, t))
        assert a.shape == t.shape and a.dtype == (dtype if name in ("y", "dx") else torch.float32), name
        if name in ("y", "dx"):
            assert a.stride() == t.stride(), name
        if t.numel():
            assert_within_twice(f"{op}.{name}", a, b, t, dtype if name in rounded else torch.float32)
    return got


def assert_statistics(z: Tensor, partials: Tensor, variance: float = 1e-5) -> None:
    """Against fp64, of the values as stored: a few roundings of the mean, ``variance`` of the variance."""
    assert partials.shape[1:] == (3, z.shape[1])
    merged = reference.batch_norm_finalize(partials.double(), None, None, 1e-30)
    exact = reference.batch_norm_finalize(
        reference.depthwise(
            z.double(), torch.ones(z.shape[1], 1, 1, 1).double(), 1, (0,) * 4, stats=True
        ).stats,
        *(None, None, 1e-30),
    )
    assert partials[:, 0].sum(0).eq(z.shape[0] * z.shape[2] * z.shape[3]).all()
    torch.testing.assert_close(merged.mean, exact.mean, rtol=5e-7, atol=2e-7)
    torch.testing.assert_close(merged.var, exact.var, rtol=variance, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_far_from_zero(isa: str, dtype: torch.dtype) -> None:
    """Mean 1000, deviation 0.01: a sum of squares would have no digit left.

    The means of the parts are rounded to 6e-5, which is in their merged variance.
    """
    for shape in ((3, 37, 29, 31), (1, 8, 1, 2), (2, 1, 9, 9), (5, 130, 7, 7)):
        z = (1e3 + 1e-2 * torch.randn(shape)).contiguous(memory_format=torch.channels_last).to(dtype)
        assert_statistics(z, kernels().channel_stats(z), 5e-3)
        c = shape[1]
        # A stencil that copies: its output has the same statistics.
        copy = torch.zeros(c, 1, 3, 3, dtype=dtype)
        copy[:, :, 1, 1] = 1
        out = cpu.depthwise(z, copy, 1, (1, 1, 1, 1), stats=True)
        assert torch.equal(out.y, z) and out.stats is not None
        assert_statistics(out.y, out.stats, 5e-3)


@pytest.mark.parametrize("first", [1e4, -3.0])
def test_statistics_with_an_outlier_first(first: float) -> None:
    """Sums shifted by the first value would be wrong here."""
    z = image(1, 20, 30, 30)
    z[:, :, 0, 0] = first
    assert_statistics(z, kernels().channel_stats(z))


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
    ("shape", "padding"),
    [
        ((1, 17, 1, 1), (9, 9, 9, 9)),
        ((2, 5, 2, 3), (0, 12, 12, 0)),
        ((1, 32, 40, 3), (3, 3, 3, 3)),
        ((1, 32, 3, 40), (3, 3, 3, 3)),
        ((1, 3, 7, 7), (0, 0, 0, 0)),
        ((4, 33, 31, 8), (1, 2, 2, 1)),
    ],
    ids=["pixel-in-wide-padding", "padding-on-one-side", "tall", "wide", "kernel-sized", "several-bands"],
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_reduce(isa: str, dtype: torch.dtype) -> None:
    for shape in ((2, 24, 9, 7), (1, 3, 1, 1), (3, 1, 40, 40), (1, 500, 6, 6), (0, 8, 3, 3)):
        dy, z, c = image(*shape, dtype), image(*shape, dtype), shape[1]
        for facts in (
            {},
            {"row_scale": torch.rand(shape[0])},
            *({"affine": affine(c), "act": act} for act in ACTIVATIONS),
        ):
            args, exact = (dy, z, norm(c)), {k: converted(v, torch.float64) for k, v in facts.items()}
            got = cpu.batch_norm_reduce(*args, **facts).sum(0)
            truth = reference.batch_norm_reduce(*(converted(a, torch.float64) for a in args), **exact).sum(0)
            baseline = reference.batch_norm_reduce(*args, **facts).sum(0)
            assert_accurate("sums", got, baseline, truth, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_act_grad(isa: str, dtype: torch.dtype) -> None:
    for shape in ((2, 24, 9, 7), (1, 3, 1, 1), (3, 1, 40, 40), (0, 8, 3, 3)):
        dy, z, c = image(*shape, dtype), image(*shape, dtype), shape[1]
        for facts in ({}, *({"affine": affine(c), "act": act} for act in ACTIVATIONS)):
            args, exact = (dy, z, bn_grad(c)), {k: converted(v, torch.float64) for k, v in facts.items()}
            got = cpu.batch_norm_act_grad(*args, **facts)
            truth = reference.batch_norm_act_grad(*(converted(a, torch.float64) for a in args), **exact)
            assert got.dtype == dtype and got.stride() == truth.stride()
            assert_accurate("dz", got, reference.batch_norm_act_grad(*args, **facts), truth, dtype)


def test_batch_norm_formulas(isa: str) -> None:
    """Parts of different counts, some empty, far from zero; weights and biases that are not there."""
    for parts, c in ((1, 1), (7, 33), (64, 96), (3, 0)):
        counts = torch.randint(0, 9, (parts, 1)).float().expand(parts, c)
        rows = torch.stack([counts, 1e3 + torch.randn(parts, c) / 100, torch.rand(parts, c) / 1e3], 1)
        for weight, bias in ((None, None), (torch.randn(c), torch.randn(c))):
            got = cpu.batch_norm_finalize(rows, weight, bias, 1e-5).vectors
            wide = (None if t is None else t.double() for t in (weight, bias))
            truth = reference.batch_norm_finalize(rows.double(), *wide, 1e-5)
            baseline = reference.batch_norm_finalize(rows, weight, bias, 1e-5)
            for name, a, b, t in zip(
                ("mean", "var", "invstd", "scale", "shift"), got, baseline.vectors, truth.vectors, strict=True
            ):
                assert_accurate(name, a, b, t, torch.float32)
        sums = torch.randn(parts, 2, c)
        for training, count in ((True, 50), (True, 0), (False, 50)):
            args = (sums, count, baseline, training)
            params, grad = cpu.batch_norm_backward_finalize(*args)
            exact = reference.batch_norm_backward_finalize(
                sums.double(), count, type(truth)(baseline.vectors.double()), training
            )
            plain = reference.batch_norm_backward_finalize(*args)
            assert_accurate("params", params, plain.params, exact.params)
            for name, a, b, t in zip(grad._fields, grad, plain.grad, exact.grad, strict=True):
                assert_accurate(name, a, b, t)


def test_batch_norm_of_nan_and_of_nothing() -> None:
    rows = torch.ones(2, 3, 5)
    rows[1, 1, 2] = float("nan")
    rows[:, 0, 4] = 0
    got = cpu.batch_norm_finalize(rows, None, None, 1e-5).vectors
    truth = reference.batch_norm_finalize(rows, None, None, 1e-5).vectors
    torch.testing.assert_close(got, truth, equal_nan=True)
    assert got[:, 2].isnan().all() and got[:, 4].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_squeeze_excite_backward(isa: str, dtype: torch.dtype) -> None:
    for n, c, hidden, bias in (
        (2, 24, 6, True),
        (3, 33, 1, False),
        (1, 1, 17, True),
        (5, 200, 48, True),
        (0, 8, 2, True),
    ):
        w1, w2 = (torch.randn(hidden, c) / c**0.5).to(dtype), torch.randn(c, hidden).to(dtype)
        b1, b2 = (torch.randn(hidden), torch.randn(c)) if bias else (None, None)
        for act, gate_act in (("silu", "sigmoid"), ("relu", "hardsigmoid")):
            # Odd strides too.
            args = (torch.randn(c, n).t(), torch.randn(n, 2 * c)[:, ::2], w1, b1, w2, b2)
            got = cpu.squeeze_excite_backward(*args, act, gate_act)
            exact = (None if t is None else t.double() for t in args)
            truth = reference.squeeze_excite_backward(*exact, act, gate_act)
            plain = reference.squeeze_excite_backward(*args, act, gate_act)
            for name, a, b, t in zip(truth._fields, got, plain, truth, strict=True):
                assert (a is None) == (t is None), name
                if t is not None:
                    assert_within_twice(name, a, b, t, torch.float32)


def test_gate_batch_norm_sums(isa: str) -> None:
    for n, c in ((3, 37), (1, 1), (0, 5)):
        for facts in ((None, None), (torch.rand(n, c), None), (torch.rand(n, c), torch.randn(n, c))):
            sums = torch.randn(5, n, c)
            exact = (None if t is None else t.double() for t in (sums, *facts))
            truth = reference.gate_batch_norm_sums(*exact)
            plain = reference.gate_batch_norm_sums(sums, *facts)
            assert_accurate("sums", cpu.gate_batch_norm_sums(sums, *facts), plain, truth)


def test_every_output_is_written(poisoned_native_memory: None) -> None:
    for dtype in DTYPES:
        x, dy, z = (image(2, 21, *size, dtype) for size in ((9, 7), (5, 4), (5, 4)))
        weight = torch.randn(21, 1, 3, 3).to(dtype)
        before = {"in_affine": affine(21), "in_act": "silu", "in_norm": norm(21)}
        out = cpu.depthwise_backward(
            dy, x, weight, 2, (1, 1, 1, 1), z=z, act="silu", affine=affine(21), grad=bn_grad(21), **before
        )
        parts = [*out, cpu.depthwise(x, weight, 2, (1, 1, 1, 1), stats=True).stats]
        dense = (torch.randn(5, 21) / 4).to(dtype)
        p = image(2, 5, 9, 7, dtype)
        parts += cpu.pointwise_backward(p, x, dense, z=p, grad=bn_grad(5), gate=torch.rand(2, 21), **before)
        forward = cpu.pointwise(x, dense, stats=True)
        parts += [forward.y, forward.stats, cpu.batch_norm_reduce(x, x, norm(21))]
        assert all(t is not None and t.isfinite().all() for t in parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_odd_addresses_and_other_layouts(dtype: torch.dtype, offset: int) -> None:
    def odd(n: int, c: int, h: int, w: int) -> Tensor:
        buffer = torch.full((offset + n * c * h * w,), float("nan"), dtype=dtype)
        view = buffer[offset:].view(n, h, w, c).permute(0, 3, 1, 2)
        return view.copy_(torch.randn(n, c, h, w))

    x, z = odd(2, 19, 9, 11), odd(2, 19, 5, 6)
    facts = {"z": z, "affine": affine(19), "act": "silu", "grad": bn_grad(19)}
    facts |= {"in_affine": affine(19), "in_act": "silu", "in_norm": norm(19)}
    for dy in (
        odd(2, 19, 5, 6),
        torch.randn(2, 19, 5, 6).to(dtype),
        torch.ones((), dtype=dtype).expand(2, 19, 5, 6),
    ):
        args = (dy, x, torch.randn(19, 1, 5, 5).to(dtype), 2, (2, 2, 2, 2))
        compare("depthwise_backward", args, facts)
        compare("pointwise_backward", (dy, z, torch.randn(19, 19).to(dtype)), {}, ("dx", "dweight", "sums"))


def run_all() -> list[Tensor]:
    """One call of everything that is threaded, on shapes with many tasks."""
    torch.manual_seed(3)
    out: list[Tensor | None] = []
    for dtype in DTYPES:
        x, dy, z = (image(3, 70, *size, dtype) for size in ((40, 37), (20, 19), (20, 19)))
        weight = torch.randn(70, 1, 5, 5).to(dtype)
        before = {"in_affine": affine(70), "in_act": "silu", "in_norm": norm(70)}
        facts = {"z": z, "affine": affine(70), "act": "silu", "grad": bn_grad(70), "gate": torch.rand(3, 70)}
        out += cpu.depthwise_backward(dy, x, weight, 2, (2, 2, 2, 2), **facts, **before)
        out += cpu.depthwise(x, weight, 2, (2, 2, 2, 2), stats=True)
        out += [kernels().channel_stats(x), cpu.batch_norm_reduce(dy, z, norm(70))]
        out += kernels().gate_and_norm_sums(dy, z, *affine(70), 1, *norm(70), torch.rand(3, 70), True)
        out.append(kernels().batch_norm_input_grad(dy, z, *bn_grad(70), torch.rand(3), None, None, 0))
    # The products; fp32 and both of them wide, so that the native ones run.
    wide, narrow, gate = image(3, 70, 20, 19), image(3, 40, 20, 19), torch.rand(3, 70)
    weight = torch.randn(40, 70)
    out += kernels().pointwise_forward(wide, weight, *affine(70), 1, gate, True)
    facts = {"z": narrow, "grad": bn_grad(40), "row_scale": torch.rand(3)}
    before = {"in_affine": affine(70), "in_act": "silu", "in_norm": norm(70), "gate": gate}
    out += cpu.pointwise_backward(narrow, wide, weight, **facts, **before)
    facts = {"z": wide, "grad": bn_grad(70), "residual_grad": narrow}
    out += cpu.pointwise_backward(wide, narrow, weight.t(), **facts)
    out += cpu.squeeze_excite_backward(gate, gate, torch.randn(900, 70), None, torch.randn(70, 900), None)
    return [t for t in out if t is not None]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run_all()
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(alone, run_all(), strict=True))
    finally:
        torch.set_num_threads(before)


def test_results_too_large_for_caches_are_those_of_single_images() -> None:
    """From 16 MB on, results are stored in another way (csrc/cpu/isa/streaming.h); an image alone is below that."""
    x, narrow = image(2, 32, 256, 260), image(2, 8, 256, 260)
    assert x.numel() > 4 << 20 > x[:1].numel()
    stencil, matrix, vectors = torch.randn(32, 1, 3, 3), torch.randn(32, 8), bn_grad(8)
    before = {"in_affine": affine(32), "in_act": "silu", "in_norm": norm(32)}

    def run(x: Tensor, narrow: Tensor) -> list[Tensor | None]:
        pad = (1, 1, 1, 1)
        return [
            cpu.depthwise(x, stencil, 1, pad, stats=True).y,
            cpu.depthwise_backward(x, x, stencil, 1, pad, **before).dx,
            cpu.pointwise(narrow, matrix, stats=True).y,
            cpu.pointwise_backward(narrow, x, matrix.t(), z=narrow, grad=vectors, **before).dx,
            cpu.pointwise_backward(narrow, x, matrix.t(), residual_grad=x, need_dw=False).dx,
        ]

    images = [run(x[i : i + 1], narrow[i : i + 1]) for i in range(2)]
    for i, joint in enumerate(run(x, narrow)):
        assert joint is not None and torch.equal(joint, torch.cat([image[i] for image in images]))


def training_step(block: torch.nn.Module, x: Tensor, dtype: torch.dtype, draw: int) -> dict[str, Tensor]:
    """Output and every gradient of one step with its own random ``dy``, and the buffers after it."""
    block.train().zero_grad()
    data = x.to(dtype, copy=True).requires_grad_()
    torch.manual_seed(7)
    y = block(data)
    torch.manual_seed(8 + draw)
    y.backward(torch.randn(y.shape).to(dtype))
    assert data.grad is not None
    named = {"y": y.detach(), "x": data.grad, **{k: p.grad for k, p in block.named_parameters()}}
    named |= {k: b.clone() for k, b in block.named_buffers() if b.is_floating_point()}
    return named


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_step_of_a_patched_block(name: str) -> None:
    """fp32, on the cpu backend by itself: output, every gradient and buffer, against the stock block in fp64.

    Largest errors over 8 steps: squeeze-and-excite has gradients of two values here, whose rounding errors in one
    step are a matter of luck, PyTorch's as well as ours.
    """
    stock, patched, x = pair(name, torch.float32)
    truth_block, _, _ = pair(name)
    truth_block.load_state_dict(stock.state_dict())
    steps = []
    for draw in range(8):
        data = x if draw == 0 else torch.randn_like(x)
        blocks = ((patched, torch.float32), (stock, torch.float32), (truth_block, torch.float64))
        steps.append([training_step(block, data, dtype, draw) for block, dtype in blocks])
    report = effnet_fast.report(patched)
    assert report.rows and all(row.state == "fused" and row.backend == "cpu" for row in report.rows), str(
        report
    )
    for key in steps[0][0]:
        got, baseline, truth = (torch.stack([step[i][key] for step in steps]) for i in range(3))
        assert_within_twice(f"{name}: {key}", got, baseline, truth, torch.float32)


BAD_CALLS: dict[str, tuple[Any, str]] = {
    "dy-shape": (
        lambda x, w: cpu.depthwise_backward(x[:, :, :5], x, w, 1, (1, 1, 1, 1)),
        r"depthwise_backward: dy: expected shape \[2, 8, 6, 6\]",
    ),
    "dy-dtype": (
        lambda x, w: cpu.depthwise_backward(x.bfloat16(), x, w, 1, (1, 1, 1, 1)),
        "dy: expected the dtype of x",
    ),
    "kernel": (
        lambda x, w: cpu.depthwise_backward(x, x, w[..., :2, :2], 1, (1, 1, 1, 1)),
        "expected kernel size 3, 5 or 7",
    ),
    "in_norm": (
        lambda x, w: cpu.depthwise_backward(x, x, w, 1, (1, 1, 1, 1), in_affine=affine(8)),
        "in_norm: expected vectors",
    ),
    "reduce": (
        lambda x, w: cpu.batch_norm_reduce(x[:1], x, norm(8)),
        r"batch_norm_reduce: dy: expected shape",
    ),
    "stats-rank": (lambda x, w: kernels().channel_stats(x[0]), "channel_stats: z: expected rank 4"),
    "product-weight": (
        lambda x, w: kernels().pointwise_forward(x, torch.randn(4, 7), None, None, 0, None, False),
        r"pointwise_forward: weight: expected shape \[4, 8\], got \[4, 7\]",
    ),
    "product-dtype": (
        lambda x, w: kernels().pointwise_forward(x, torch.randn(4, 8).bfloat16(), None, None, 0, None, False),
        "pointwise_forward: weight: expected float32",
    ),
    "product-norm": (
        lambda x, w: kernels().pointwise_backward(
            *(x, x, torch.randn(8, 8), *(None,) * 6, *affine(8), 1, *(None,) * 4, True, True)
        ),
        "pointwise_backward: in_norm: expected vectors",
    ),
    "product-dy": (
        lambda x, w: cpu.pointwise_backward(x, x, torch.randn(4, 8)),
        r"pointwise_backward: dy: expected shape \[2, 4, 6, 6\], got \[2, 8, 6, 6\]",
    ),
    "finalize-stats": (
        lambda x, w: cpu.batch_norm_finalize(torch.ones(2, 2, 8), None, None, 1e-5),
        r"batch_norm_finalize: stats: expected shape \[P, 3, C\], got \[2, 2, 8\]",
    ),
    "finalize-weight": (
        lambda x, w: cpu.batch_norm_finalize(torch.ones(2, 3, 8), torch.ones(7), None, 1e-5),
        r"batch_norm_finalize: weight: expected shape \[8\], got \[7\]",
    ),
    "backward-finalize": (
        lambda x, w: kernels().batch_norm_backward_finalize(torch.ones(1, 2, 8), 4, torch.ones(4, 8), True),
        r"batch_norm_backward_finalize: stats: expected shape \[5, C\], got \[4, 8\]",
    ),
    "gate-sums": (
        lambda x, w: cpu.gate_batch_norm_sums(torch.ones(5, 2, 8), torch.ones(3, 8), None),
        r"gate_batch_norm_sums: gate: expected shape \[2, 8\], got \[3, 8\]",
    ),
    "excite-backward": (
        lambda x, w: cpu.squeeze_excite_backward(
            *(torch.ones(2, 8), torch.ones(2, 8), torch.ones(4, 8), None, torch.ones(8, 5), None)
        ),
        r"squeeze_excite_backward: w2: expected shape \[8, 4\], got \[8, 5\]",
    ),
    "gate": (
        lambda x, w: kernels().gate_and_norm_sums(x, x, *affine(8), 1, *norm(8), torch.rand(2, 7), True),
        r"gate: expected shape \[2, 8\], got \[2, 7\]",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(name: str) -> None:
    call, message = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=message):
        call(image(2, 8, 6, 6), torch.randn(8, 1, 3, 3))
