"""The CUDA depthwise kernels, executed on the CPU, against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_name import ByName

from effnet_fast.backend import reference
from effnet_fast.backend.reference import ACTIVATIONS
from effnet_fast.types import Norm

from . import harness, problems

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TEMPLATES = list(itertools.product((3, 5, 7), (1, 2)))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def shapes(kernel: int) -> list[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]:
    """(shape, padding): vectors of channels, no vectors, an image smaller than the kernel."""
    half = kernel // 2
    return [
        ((2, 40, 9, 11), (half,) * 4),
        ((1, 3, 8, 17), (0, kernel - 1, 1, 2)),
        ((3, 72, 2, 1), (half, half + 1, kernel, kernel)),
    ]


@dtypes
def test_forward(check: Callable[..., None], dtype: torch.dtype) -> None:
    check(
        [
            problems.depthwise(dtype, k, s, *shape, training=training)
            for k, s in TEMPLATES
            for shape in shapes(k)
            for training in (False, True)
        ]
    )


@dtypes
def test_forward_of_a_running_batch_norm(check: Callable[..., None], dtype: torch.dtype) -> None:
    """The kernel folds it, whatever the dtype of its vectors; images that are cut leave their mean in parts."""
    given = []
    for vectors, parameters in itertools.product(DTYPES, (True, False)):
        for channels, size in ((40, 9), (3, 31)):
            norm = problems.running_norm(channels, vectors, parameters)
            given.append(problems.depthwise(dtype, 3, 1, (2, channels, size, size), (1,) * 4, norm=norm))
    check(given)


@dtypes
def test_forward_with_weights_of_float32(check: Callable[..., None], dtype: torch.dtype) -> None:
    """As modules have them under autocast."""
    check(
        [
            problems.depthwise(dtype, k, s, (2, 40, 9, 11), (k // 2,) * 4, wide_weight=True)
            for k, s in TEMPLATES
        ]
    )


@dtypes
def test_backward(check: Callable[..., None], dtype: torch.dtype) -> None:
    check(
        [
            problems.depthwise_backward(dtype, k, s, *shape, kind=kind)
            for k, s in TEMPLATES
            for shape in shapes(k)
            for kind in ("block", "first", "plain")
        ]
    )


def test_backward_of_one_gradient(check: Callable[..., None]) -> None:
    check(
        [
            problems.depthwise_backward(
                torch.float32, k, s, (2, 34, 7, 9), (k // 2,) * 4, kind="first", **need
            )
            for k, s in TEMPLATES
            for need in ({"need_dx": False}, {"need_dw": False})
        ]
    )


def test_backward_computes_sums_without_dx_asked_for(solve: Callable[..., list[Any]]) -> None:
    problem = problems.depthwise_backward(torch.float32, 3, 1, (1, 8, 5, 5), (1, 1, 1, 1), need_dx=False)
    (got,) = solve([problem])
    problems.check(problem, got)
    assert got.sums is not None


def test_every_activation(check: Callable[..., None]) -> None:
    given = []
    for act in ACTIVATIONS:
        given += [
            problems.depthwise(torch.float32, 3, 1, (1, 5, 6, 7), (1, 1, 1, 1), training=training, act=act)
            for training in (False, True)
        ]
        given.append(problems.depthwise_backward(torch.float32, 3, 1, (1, 5, 6, 7), (1, 1, 1, 1), act=act))
    check(given)


@dtypes
def test_misaligned_pointers(check: Callable[..., None], dtype: torch.dtype) -> None:
    given = [problems.depthwise(dtype, 3, 1, (1, 40, 6, 7), (1, 1, 1, 1), training=t) for t in (False, True)]
    given += [
        problems.depthwise_backward(dtype, 3, 2, (1, 40, 6, 7), (1, 1, 1, 1), kind=k)
        for k in ("block", "first")
    ]
    check(given, misaligned=True)


@pytest.mark.parametrize(("kernel", "stride"), TEMPLATES)
def test_plans(plain_runner: Path, tmp_path: Path, kernel: int, stride: int) -> None:
    """The planner only chooses among ways to compute the same: a sample of ten each is forced and compared."""
    shape, padding = (3, 70, 13, 18), (kernel // 2, 0, 1, kernel // 2)
    forward = problems.depthwise(torch.bfloat16, kernel, stride, shape, padding, training=True)
    pooled = problems.depthwise(torch.bfloat16, kernel, stride, shape, padding)
    backward = problems.depthwise_backward(torch.bfloat16, kernel, stride, shape, padding)
    x, weight = forward.args[:2]
    counts = harness.run(
        plain_runner,
        [
            harness.count_plans(x, weight, stride, padding),
            harness.count_plans(x, weight, stride, padding, backward=True, has_z=True),
        ],
        tmp_path,
    )
    assert min(counts) > 10
    forced = [(p, plan) for plan in range(0, counts[0], counts[0] // 10) for p in (forward, pooled)]
    forced += [(backward, plan) for plan in range(0, counts[1], counts[1] // 10)]
    cases = [harness.case(problem, plan=plan) for problem, plan in forced]
    for (problem, plan), got in zip(forced, harness.run(plain_runner, cases, tmp_path), strict=True):
        problems.check(problem._replace(label=f"plan {plan}: {problem.label}"), got)


def test_statistics_survive_a_large_mean(solve: Callable[..., list[Any]]) -> None:
    """Mean 1e3, deviation 1e-2: a sum of squares would lose every digit of the variance."""
    problem = problems.depthwise(torch.float32, 3, 1, (4, 9, 12, 10), (0, 0, 0, 0), training=True)
    x, weight = problem.args[:2]
    weight.zero_()[:, :, 1, 1] = 1
    x.mul_(1e-2).add_(1e3)
    problem = problem._replace(kwargs={"stats": True})
    (got,) = solve([problem])
    var = reference.batch_norm_finalize(got.stats.double(), None, None, 0.0).var
    truth = got.y.double().var(dim=(0, 2, 3), unbiased=False)
    # What is left is the rounding of the partial rows' means, 3e-5 at 1e3, against their distances of about 1e-3.
    torch.testing.assert_close(var, truth, rtol=2e-3, atol=0)
    assert got.stats[:, 0].sum(0).tolist() == [4 * 10 * 8] * 9


def test_extreme_values(solve: Callable[..., list[Any]]) -> None:
    """No overflow to NaN far from zero; a NaN stays within its image, its channel and the kernel's reach."""
    values = torch.tensor([0.0, 20, 88, 89, 104, 1e4, 65504, 1e30, float("inf")])
    x = torch.cat([values, -values[:-1]]).reshape(1, 1, 1, -1).expand(2, 3, 1, -1)
    x = x.clone(memory_format=torch.channels_last)
    weight = torch.zeros(3, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    x[1, 1, 0, 0] = float("nan")
    one = problems.affine(3)._replace(scale=torch.ones(3), shift=torch.zeros(3))
    args = (x, weight, 1, (1, 1, 1, 1))
    prologue = problems.Problem("depthwise", args, {"in_affine": one, "in_act": "silu"}, "prologue")
    got = solve([prologue])[0].y
    silu = torch.nn.functional.silu(x)
    finite = silu.isfinite()
    finite[:, :, :, 7:10] = False  # neighbours of infinity: 0 * inf
    finite[1, 1, 0, 1] = False
    torch.testing.assert_close(got[finite], silu[finite], rtol=1e-5, atol=1e-30)
    assert got[1, 1].isnan()[0, :2].all()
    torch.testing.assert_close(got[1, 0], got[0, 0], rtol=0, atol=0, equal_nan=True)


def test_same_bits_every_time(solve: Callable[..., list[Any]]) -> None:
    forward = problems.depthwise(torch.float32, 5, 1, (2, 40, 9, 30), (2, 2, 2, 2))
    backward = problems.depthwise_backward(torch.float32, 5, 1, (2, 40, 9, 30), (2, 2, 2, 2))
    first, second = solve([forward, backward]), solve([forward, backward])
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("scale", [1e19, 1e20, 1e30])
def test_variances_beyond_fp32(solve: Callable[..., list[Any]], scale: float) -> None:
    """Squares overflow: the sum of squared deviations is infinity, never NaN; means stay right."""
    problem = problems.depthwise(torch.float32, 3, 1, (3, 40, 19, 23), (1, 1, 1, 1), training=True)
    x, weight = problem.args[:2]
    weight.zero_()[:, :, 1, 1] = 1
    x.mul_(scale)
    (got,) = solve([problem._replace(kwargs={"stats": True})])
    count, mean, m2 = got.stats.unbind(1)
    assert count.sum(0).tolist() == [3 * 19 * 23] * 40
    assert not m2.isnan().any() and m2.isinf().any()
    truth = x.double().mean((0, 2, 3))
    merged = (count.double() * mean.double()).sum(0) / count.sum(0)
    torch.testing.assert_close(merged, truth, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_the_gradient_passes_at_nan(solve: Callable[..., list[Any]], act: str) -> None:
    """As in PyTorch: act'(NaN) is 1. The prologue's activation is differentiated last, so its sums show it."""
    problem = problems.depthwise_backward(torch.float32, 3, 1, (1, 3, 5, 6), (1, 1, 1, 1))
    x = problem.args[1]
    x[0, 1, 2, 3] = float("nan")
    options = {
        "in_affine": problems.affine(3),
        "in_act": act,
        "in_norm": Norm(torch.randn(3), torch.rand(3) + 0.5),
    }
    problem = problem._replace(kwargs=options)
    (got,) = solve([problem])
    truth = ByName(reference).depthwise_backward(*problem.args, **options)
    torch.testing.assert_close(got.dx, truth.dx, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(got.sums.sum(0), truth.sums.sum(0), rtol=1e-5, atol=1e-4, equal_nan=True)
    assert got.sums.sum(0)[0].isfinite().all()
