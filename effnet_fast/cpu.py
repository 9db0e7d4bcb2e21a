"""The CPU backend: C++ kernels behind the reference's signatures; inference in fp32 and bf16.

Depthwise, squeeze-and-excite and the elementwise passes are the package's own (``csrc/cpu/``). The 1x1
convolution multiplies with PyTorch's GEMM, which comes within 15 % of the fp32 FMA peak on the shapes of B0
(docs/kernels/depthwise.md), and gets its prologue and epilogue from one elementwise pass each.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import native
from .reference.activations import ACTIVATIONS
from .types import Affine, BatchNormStats, ConvOut, Padding

_OPS = frozenset(
    ("depthwise", "pointwise", "squeeze_excite", "batch_norm_fold", "affine_pool", "affine_residual")
)
_NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}


def can_run(op: str, device: torch.device, dtype: torch.dtype, **facts: Any) -> tuple[bool, str]:
    """Whether this backend runs ``op``, and if not, why: one clause for the user."""
    if device.type != "cpu":
        return False, f"its kernels run on the CPU, not on {device.type}"
    if op not in _OPS:
        return False, f"it has inference kernels only, no {op}"
    if dtype not in (torch.float32, torch.bfloat16):
        return False, f"{dtype} is neither float32 nor bfloat16"
    if facts.get("stats"):
        return False, "batch statistics were asked for (training), and it has inference kernels only"
    if facts.get("kernel_size", 3) not in (3, 5, 7):
        return False, f"its depthwise kernels are 3x3, 5x5 and 7x7, not {facts['kernel_size']}"
    if facts.get("stride", 1) not in (1, 2):
        return False, f"its depthwise strides are 1 and 2, not {facts['stride']}"
    return native.available("_ops")


@cache
def _kernels() -> SimpleNamespace:
    # The overloads themselves: resolving them anew costs about 2 us a call.
    names = ("depthwise", "elementwise", "elementwise_", "squeeze_excite", "batch_norm_fold")
    return SimpleNamespace(**{name: getattr(native.ops(), name).default for name in names})


def depthwise(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    in_affine: Affine | None = None,
    in_act: str = "none",
    affine: Affine | None = None,
    act: str = "none",
    pool: bool = False,
    stats: bool = False,
) -> ConvOut:
    """As :func:`effnet_fast.reference.depthwise`, one pass; fp32 and bf16, no ``stats``."""
    in_scale, in_shift = in_affine or (None, None)
    scale, shift = affine or (None, None)
    y, pooled = _kernels().depthwise(
        x, weight, stride, padding, in_scale, in_shift, _NUMBER[in_act], scale, shift, _NUMBER[act], pool
    )
    return ConvOut(y, pooled if pool else None, None)


def pointwise(
    x: Tensor,
    weight: Tensor,
    *,
    in_affine: Affine | None = None,
    in_act: str = "none",
    gate: Tensor | None = None,
    affine: Affine | None = None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
    pool: bool = False,
    stats: bool = False,
) -> ConvOut:
    """As :func:`effnet_fast.reference.pointwise`; fp32 and bf16, no ``stats``. In bf16 ``z`` is rounded too."""
    n, channels, height, width = x.shape
    out_channels = weight.shape[0]
    if (
        in_affine is None
        and in_act == "none"
        and gate is not None
        and n == 1
        and out_channels < height * width
    ):
        # One image: scaling the weight's columns touches less memory than scaling the image.
        weight, gate = (weight * gate).to(weight.dtype), None
    if in_affine is not None or in_act != "none" or gate is not None:
        in_scale, in_shift = in_affine or (None, None)
        x, _ = _kernels().elementwise(x, in_scale, in_shift, _NUMBER[in_act], gate, None, False, True)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    y = torch.mm(rows, weight.t()).view(n, height, width, out_channels).permute(0, 3, 1, 2)
    pooled = None
    if affine is not None or act != "none" or row_scale is not None or residual is not None or pool:
        scale, shift = affine or (None, None)
        multiplier = _per_channel(row_scale, out_channels)
        pooled = _kernels().elementwise_(y, scale, shift, _NUMBER[act], multiplier, residual, pool)
    return ConvOut(y, pooled if pool else None, None)


def affine_pool(z: Tensor, affine: Affine | None, act: str = "none") -> Tensor:
    """As :func:`effnet_fast.reference.affine_pool`; fp32 and bf16."""
    scale, shift = affine or (None, None)
    return _kernels().elementwise(z, scale, shift, _NUMBER[act], None, None, True, False)[1]


def affine_residual(
    z: Tensor,
    affine: Affine | None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """As :func:`effnet_fast.reference.affine_residual`; fp32 and bf16."""
    scale, shift = affine or (None, None)
    multiplier = _per_channel(row_scale, z.shape[1])
    return _kernels().elementwise(z, scale, shift, _NUMBER[act], multiplier, residual, False, True)[0]


def squeeze_excite(
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
) -> Tensor:
    """As :func:`effnet_fast.reference.squeeze_excite`; ``pooled`` fp32, weights fp32 or bf16."""
    b1 = None if b1 is None else b1.to(w1.dtype)
    b2 = None if b2 is None else b2.to(w2.dtype)
    return _kernels().squeeze_excite(pooled, w1, b1, w2, b2, _NUMBER[act], _NUMBER[gate_act])


def batch_norm_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> BatchNormStats:
    """As :func:`effnet_fast.reference.batch_norm_fold`; fp32 vectors."""
    return BatchNormStats(_kernels().batch_norm_fold(weight, bias, mean, var, eps))


def _per_channel(row_scale: Tensor | None, channels: int) -> Tensor | None:
    """[N] -> [N, C], the kernel's multiplier."""
    return None if row_scale is None else row_scale[:, None].expand(-1, channels)
