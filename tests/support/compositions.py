"""What every op computes, written with PyTorch's own functions in whatever dtype the tensors have: oracle and baseline.

Independent of ``effnet_fast.backend.reference``: these are the formulas of the ops' docstrings, differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast.types import accumulation_dtype

Pair = tuple[Tensor, Tensor] | None

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    # PyTorch's own backward multiplies by 1/6 in single precision, even in fp64.
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6 if x.dtype == torch.float64 else F.hardsigmoid(x),
}
#: Where a derivative jumps: there, one rounding more or less decides between two right gradients.
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0), "hardsigmoid": (-3.0, 3.0)}

_distances: list[float] | None = None


@contextmanager
def distances_to_kinks() -> Iterator[list[float]]:
    """Collects how near the arguments of activations come to a kink."""
    global _distances
    _distances = found = [float("inf")]
    try:
        yield found
    finally:
        _distances = None


def activation(name: str, x: Tensor) -> Tensor:
    if _distances is not None and x.numel():
        _distances.extend((x.detach() - kink).abs().min().item() for kink in KINKS.get(name, ()))
    return _FUNCTIONS[name](x)


def wide(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype))


def affine(x: Tensor, pair: Pair) -> Tensor:
    """As PyTorch's BatchNorm with running statistics: fp32 vectors, the result in x's dtype."""
    if pair is None:
        return x
    scale, shift = (v[:, None, None] for v in pair)
    return (wide(x) * scale + shift).to(x.dtype)


def _outputs(y: Tensor, pool: bool, stats: bool) -> list[Tensor]:
    out = [y]
    if pool:
        out.append(wide(y).mean((2, 3)))
    if stats:
        flat = wide(y).transpose(0, 1).flatten(1)
        out.append(torch.stack([flat.mean(1), flat.var(1, correction=0)]))
    return out


def depthwise(
    x: Tensor,
    weight: Tensor,
    in_affine: Pair,
    out_affine: Pair,
    *,
    stride: int,
    padding: Sequence[int],
    in_act: str,
    act: str,
    pool: bool,
    stats: bool,
) -> list[Tensor]:
    a = activation(in_act, affine(x, in_affine))
    z = F.conv2d(F.pad(a, list(padding)), weight, stride=stride, groups=x.shape[1])
    return _outputs(activation(act, affine(z, out_affine)), pool, stats)


def pointwise(
    x: Tensor,
    weight: Tensor,
    in_affine: Pair,
    out_affine: Pair,
    gate: Tensor | None,
    row_scale: Tensor | None,
    residual: Tensor | None,
    *,
    in_act: str,
    act: str,
    pool: bool,
    stats: bool,
) -> list[Tensor]:
    a = activation(in_act, affine(x, in_affine))
    if gate is not None:
        a = (wide(a) * gate[:, :, None, None]).to(a.dtype)
    y = activation(act, affine(F.conv2d(a, weight[:, :, None, None]), out_affine))
    if row_scale is not None:
        y = (wide(y) * row_scale[:, None, None, None]).to(y.dtype)
    return _outputs(y if residual is None else y + residual, pool, stats)


def squeeze_excite(
    pooled: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, *, act: str, gate: str
) -> list[Tensor]:
    return [activation(gate, F.linear(activation(act, F.linear(pooled, w1, b1)), w2, b2))]


def batch_norm(x: Tensor, bn: Sequence[Tensor | None], training: bool, eps: float) -> Tensor:
    """``bn`` is weight, bias, running mean, running variance, of which nothing is updated."""
    weight, bias, mean, var = bn
    if training:
        mean = var = None
    return F.batch_norm(x, mean, var, weight, bias, training=training, eps=eps)


def conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn: Sequence[Tensor | None],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    training: bool,
    eps: float,
) -> list[Tensor]:
    return [activation(act, batch_norm(F.conv2d(x, weight, None, stride, padding), bn, training, eps))]


def mbconv(
    x: Tensor,
    convs: Sequence[Tensor | None],
    norms: Sequence[Sequence[Tensor | None]],
    excite: Sequence[Tensor | None],
    row_scale: Tensor | None,
    *,
    stride: int,
    padding: Sequence[int],
    acts: Sequence[str],
    residual: bool,
    training: Sequence[bool],
    eps: float,
) -> list[Tensor]:
    """``convs`` and ``norms`` in the order expand, depthwise, project; ``acts``: expand, depthwise, SE, gate."""
    expand, stencil, project = convs
    a = x
    if expand is not None:
        a = F.conv2d(a, expand[:, :, None, None])
        a = activation(acts[0], batch_norm(a, norms[0], training[0], eps))
    assert stencil is not None and project is not None
    a = F.conv2d(F.pad(a, list(padding)), stencil, stride=stride, groups=a.shape[1])
    a = activation(acts[1], batch_norm(a, norms[1], training[1], eps))
    if excite[0] is not None:
        w1, b1, w2, b2 = (None if t is None else t.to(a.dtype) for t in excite)
        assert w1 is not None and w2 is not None
        a = a * squeeze_excite(a.mean((2, 3)), w1, b1, w2, b2, act=acts[2], gate=acts[3])[0][:, :, None, None]
    y = batch_norm(F.conv2d(a, project[:, :, None, None]), norms[2], training[2], eps)
    if row_scale is not None:
        y = (wide(y) * row_scale[:, None, None, None]).to(y.dtype)
    return [y + x if residual else y]
