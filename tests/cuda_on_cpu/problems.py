"""Random problems for the depthwise and squeeze-and-excite kernels, and what the reference says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from by_name import ByName
from torch import Tensor

from effnet_fast.backend import reference
from effnet_fast.tolerance import assert_accurate
from effnet_fast.types import (
    Affine,
    BatchNormGrad,
    ConvGrad,
    ConvOut,
    Norm,
    Padding,
    RunningNorm,
    SqueezeExciteGrad,
)


class Problem(NamedTuple):
    """One call of an op, by its name in :mod:`effnet_fast.backend.reference`."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    label: str

    @property
    def dtype(self) -> torch.dtype:
        return self.args[1].dtype


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_double(part) for part in value))
    return value


def affine(channels: int) -> Affine:
    return Affine(torch.rand(channels) + 0.5, torch.randn(channels))


def running_norm(channels: int, dtype: torch.dtype, parameters: bool = True) -> RunningNorm:
    """A BatchNorm in inference, its vectors of one dtype; without ``parameters``, of ``affine=False``."""
    vectors = (
        torch.rand(channels) + 0.5,
        torch.randn(channels),
        torch.randn(channels),
        torch.rand(channels) + 0.5,
    )
    weight, bias, mean, var = (v.to(dtype) for v in vectors)
    return RunningNorm(*((weight, bias) if parameters else (None, None)), mean, var, 1e-3)


def _activations(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


def depthwise(
    dtype: torch.dtype,
    kernel: int,
    stride: int,
    shape: tuple[int, int, int, int],
    padding: Padding,
    *,
    training: bool = False,
    act: str = "silu",
    norm: RunningNorm | None = None,
    wide_weight: bool = False,
) -> Problem:
    """Training: prologue and statistics. Otherwise: epilogue (of a BatchNorm, or an affine) and pool."""
    x = _activations(*shape, dtype=dtype)
    weight = torch.randn(shape[1], 1, kernel, kernel).to(torch.float32 if wide_weight else dtype)
    if training:
        kwargs: dict[str, Any] = {"in_affine": affine(shape[1]), "in_act": act, "stats": True}
    else:
        kwargs = {"affine": affine(shape[1]) if norm is None else norm, "act": act, "pool": True}
    label = f"{dtype} k{kernel} s{stride} {shape} {padding} {'training' if training else 'inference'} {act}"
    return Problem("depthwise", (x, weight, stride, padding), kwargs, label)


def depthwise_backward(
    dtype: torch.dtype,
    kernel: int,
    stride: int,
    shape: tuple[int, int, int, int],
    padding: Padding,
    *,
    kind: str = "block",
    act: str = "silu",
    need_dx: bool = True,
    need_dw: bool = True,
) -> Problem:
    """``block``: everything a training MBConv has. ``first``: no expansion before it, a residual. ``plain``: dy alone."""
    n, c, h, w = shape
    left, right, top, bottom = padding
    out = (n, c, (h + top + bottom - kernel) // stride + 1, (w + left + right - kernel) // stride + 1)
    x, dy = _activations(*shape, dtype=dtype), _activations(*out, dtype=dtype)
    weight = torch.randn(c, 1, kernel, kernel).to(dtype)
    kwargs: dict[str, Any] = {"need_dx": need_dx, "need_dw": need_dw}
    if kind != "plain":
        kwargs.update(z=_activations(*out, dtype=dtype), affine=affine(c), act=act)
        kwargs.update(grad=BatchNormGrad(*(torch.randn(c) for _ in range(4))))
    if kind == "block":
        kwargs.update(gate=torch.rand(n, c), pool_grad=torch.randn(n, c))
        kwargs.update(in_affine=affine(c), in_act=act, in_norm=Norm(torch.randn(c), torch.rand(c) + 0.5))
    if kind == "first":
        kwargs.update(residual_grad=_activations(*shape, dtype=dtype))
    label = f"{dtype} k{kernel} s{stride} {shape} {padding} {kind} {act} dx={need_dx} dw={need_dw}"
    return Problem("depthwise_backward", (dy, x, weight, stride, padding), kwargs, label)


def squeeze_excite(
    dtype: torch.dtype,
    images: int,
    channels: int,
    reduced: int,
    *,
    backward: bool,
    bias: bool = True,
    acts: tuple[str, str],
    parts: int = 1,
    area: int = 1,
) -> Problem:
    w1, w2 = torch.randn(reduced, channels) / channels**0.5, torch.randn(channels, reduced) / reduced**0.5
    b1, b2 = torch.randn(reduced).to(dtype), torch.randn(channels).to(dtype)
    biased = (w1.to(dtype), b1 if bias else None, w2.to(dtype), b2 if bias else None)
    whole = backward or parts == 1
    pooled = torch.randn(images, channels) if whole else torch.randn(images, parts, channels) / parts
    args: tuple[Any, ...] = (pooled, *biased, *acts)
    if backward:
        dgate = torch.randn(images, channels) if parts == 1 else torch.randn(images, parts, channels)
        args = (dgate, *args, area)
    op = "squeeze_excite_backward" if backward else "squeeze_excite"
    return Problem(op, args, {}, f"{dtype} {images}x{parts}x{channels}->{reduced} bias={bias} {acts}")


def check(problem: Problem, got: ConvOut | ConvGrad | SqueezeExciteGrad | Tensor) -> None:
    """Every output against the fp64 truth, by the rule of effnet_fast.tolerance."""
    function: Callable[..., Any] = getattr(ByName(reference), problem.op)
    baseline = function(*problem.args, **problem.kwargs)
    truth = function(*map(_double, problem.args), **{name: _double(v) for name, v in problem.kwargs.items()})
    if isinstance(got, Tensor):
        got, baseline, truth = ({"gate": t} for t in (got, baseline, truth))
    else:
        got, baseline, truth = (_merged(value._asdict()) for value in (got, baseline, truth))
    for name, value in got.items():
        assert (value is None) == (truth[name] is None), f"{problem.label}: {name}"
        if value is not None:
            assert_accurate(f"{problem.label}: {name}", value, baseline[name], truth[name])


def _merged(parts: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Partial rows, whose number is a backend's business, become their sums."""
    parts = dict(parts)
    if parts.get("pooled") is not None and parts["pooled"].dim() == 3:
        parts["pooled"] = parts["pooled"].sum(1)
    sums, stats = parts.get("sums"), parts.pop("stats", None)
    if sums is not None:
        parts["sums"] = sums.sum(0)
    vectors = None if stats is None else reference.batch_norm_finalize(stats, None, None, 0.0).vectors
    if "pooled" in parts:
        parts.update(
            mean=None if vectors is None else vectors[0], var=None if vectors is None else vectors[1]
        )
    return parts
