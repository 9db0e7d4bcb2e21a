"""The CPU backend's statistics, BatchNorm and squeeze-and-excite in training against the reference."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import (
    DTYPES,
    affine,
    assert_statistics,
    assert_within_twice,
    bn_grad,
    converted,
    cpu,
    image,
    norm,
    reference,
)

from effnet_fast.backend import native
from effnet_fast.backend.cpu.entry_points import kernels
from effnet_fast.backend.reference.activations import ACTIVATIONS
from effnet_fast.tolerance import assert_accurate

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)


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
