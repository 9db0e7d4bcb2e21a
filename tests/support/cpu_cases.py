"""Inputs of the CPU backend's training kernels, and how what comes out is judged."""

from __future__ import annotations

from typing import Any

import torch
from by_name import ByName
from torch import Tensor

from effnet_fast.backend import cpu as cpu_backend
from effnet_fast.backend import reference as reference_backend
from effnet_fast.tolerance import allowed, error
from effnet_fast.types import Affine, BatchNormGrad, Norm

DTYPES = (torch.float32, torch.bfloat16)

#: Images and paddings where a stencil's edges meet: name -> shape, padding.
EDGES = {
    "pixel-in-wide-padding": ((1, 17, 1, 1), (9, 9, 9, 9)),
    "padding-on-one-side": ((2, 5, 2, 3), (0, 12, 12, 0)),
    "tall": ((1, 32, 40, 3), (3, 3, 3, 3)),
    "wide": ((1, 32, 3, 40), (3, 3, 3, 3)),
    "kernel-sized": ((1, 3, 7, 7), (0, 0, 0, 0)),
}

cpu, reference = ByName(cpu_backend), ByName(reference_backend)


def image(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=torch.channels_last)


def affine(c: int) -> Affine:
    return Affine(torch.rand(c) + 0.5, torch.randn(c))


def norm(c: int) -> Norm:
    return Norm(torch.randn(c), torch.rand(c) + 0.5)


def bn_grad(c: int) -> BatchNormGrad:
    return BatchNormGrad(torch.rand(c) + 0.5, torch.randn(c) / 4, torch.randn(c) / 4, torch.randn(c))


def double(value: Tensor | Affine | None) -> Tensor | Affine | None:
    if isinstance(value, Affine):
        return Affine(value.scale.double(), value.shift.double())
    return None if value is None else value.double()


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
