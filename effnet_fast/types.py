"""The small structures that kernels of every backend take and return.

Symbols are those of docs/design.md: a *raw* tensor is a convolution's output before its BatchNorm,
an *affine* is the per-channel ``(scale, shift)`` a BatchNorm becomes once its statistics are known.
All vectors are fp32 (fp64 when the tensors are fp64) and contiguous, but those of a :class:`RunningNorm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Four-sided zero padding, in the order of :func:`torch.nn.functional.pad`.
Padding = tuple[int, int, int, int]  # left, right, top, bottom

#: k of the k x k depthwise convolutions that have kernels, and their strides.
KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)


def stencil_refusal(kernel_size: int = KERNEL_SIZES[0], stride: int = STRIDES[0], **_: object) -> str:
    """Why a backend's depthwise kernels lack this size or stride, one clause; empty where they have it."""
    if kernel_size not in KERNEL_SIZES:
        *others, last = (f"{k}x{k}" for k in KERNEL_SIZES)
        return f"its depthwise kernels are {', '.join(others)} and {last}, not {kernel_size}"
    if stride not in STRIDES:
        return f"its depthwise strides are {' and '.join(map(str, STRIDES))}, not {stride}"
    return ""


def same_padding(height: int, width: int, kernel: int, stride: int) -> Padding:
    """TensorFlow's "SAME" for an input of this size."""

    def split(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    return (*split(width), *split(height))


class Affine(NamedTuple):
    """``n = scale * z + shift`` per channel."""

    scale: Tensor  # [C]
    shift: Tensor  # [C]


class RunningNorm(NamedTuple):
    """A BatchNorm with running statistics, as its module has it: ``n = (z - mean) / sqrt(var + eps) * weight + bias``.

    Where a kernel takes an :class:`Affine` behind its convolution it takes this too and folds it as it stores:
    ``scale = weight / sqrt(var + eps)``, ``shift = bias - mean * scale``. Of any floating dtype; contiguous.
    """

    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    mean: Tensor  # [C]
    var: Tensor  # [C]
    eps: float


class Norm(NamedTuple):
    """``z_hat = (z - mean) * invstd`` per channel."""

    mean: Tensor  # [C]
    invstd: Tensor  # [C]


class BatchNormGrad(NamedTuple):
    """BatchNorm's backward as one formula per channel: ``dz = a * g + b * (z - mean) + c``.

    ``g`` is the gradient of the BatchNorm's output. ``b`` and ``c`` are zero where the statistics are
    frozen. Centring ``z`` keeps the formula accurate when ``|mean|`` is much larger than the deviation.
    """

    a: Tensor  # [C]
    b: Tensor  # [C]
    c: Tensor  # [C]
    mean: Tensor  # [C]


class ConvOut(NamedTuple):
    """What a convolution primitive returns; a part not asked for is ``None``."""

    y: Tensor  # [N, C, H, W], channels_last
    pooled: Tensor | None  # [N, C], mean over H and W; or [N, P, C], in P parts whose sum over P is the mean
    stats: Tensor | None  # [P, 3, C], partial (count, mean, M2); see batch_norm_finalize

    @property
    def mean(self) -> Tensor | None:
        """``pooled`` as [N, C], its parts summed."""
        return self.pooled if self.pooled is None or self.pooled.dim() == 2 else self.pooled.sum(1)


class ConvGrad(NamedTuple):
    """What a convolution primitive's backward returns; a part not asked for is ``None``."""

    dx: Tensor | None  # [N, C, H, W], channels_last
    dweight: Tensor | None  # shape of the weight, accumulation dtype
    sums: Tensor | None  # reductions for the operations before the convolution; see each op


class BatchNormStats(NamedTuple):
    """Statistics of one BatchNorm and what follows from them, as the rows of one tensor.

    One tensor because autograd saves it, the native kernels fill it in one launch, and the running
    statistics are updated from its first two rows.
    """

    vectors: Tensor  # [5, C]: mean, biased variance, invstd, scale, shift

    @property
    def mean(self) -> Tensor:
        return self.vectors[0]

    @property
    def var(self) -> Tensor:
        return self.vectors[1]

    @property
    def norm(self) -> Norm:
        return Norm(self.vectors[0], self.vectors[2])

    @property
    def affine(self) -> Affine:
        return Affine(self.vectors[3], self.vectors[4])


class Running(NamedTuple):
    """Running statistics of a BatchNorm in training mode, which its finalizing moves, in place.

    The one thing that a kernel writes besides its outputs, and only where an op is called plainly
    (``ops/declare.py``): elsewhere ops do not mutate and the caller moves them, with :func:`move_running`.
    """

    mean: Tensor | None  # [C], any dtype
    var: Tensor | None
    batches: Tensor | None  # [], int64: num_batches_tracked
    momentum: float | None  # None: the average of all batches

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return (self.mean, self.var, self.batches)


@torch.no_grad()
def move_running(running: Running, stats: BatchNormStats, count: int | Tensor) -> None:
    """What ``nn.BatchNorm2d.forward`` does in training mode: the moving (or cumulative) average, unbiased variance.

    ``count`` is how many values the statistics are of.
    """
    mean, var, batches, momentum = running
    if batches is not None:
        batches.add_(1)
    if mean is None or var is None or (momentum is None and batches is None):
        return
    if not torch.compiler.is_compiling():
        # As native batch_norm, which moves them unseen by autograd: another forward may have kept them for its backward.
        mean, var = mean.data, var.data
    # Cumulative average: the new value's weight is one over the number of batches, on the device, without a sync.
    weight = momentum if momentum is not None else 1.0 / batches.to(mean.dtype)  # type: ignore[union-attr]
    mean.lerp_(stats.mean.to(mean.dtype), weight)
    unbiased = stats.var * (count / (count - 1))
    var.lerp_(unbiased.to(var.dtype), weight)


class BatchNormParamGrad(NamedTuple):
    """Gradients of a BatchNorm's parameters and the formula for its input's gradient."""

    params: Tensor  # [2, C]: gradient of the bias (sum g), gradient of the weight (sum g * z_hat)
    grad: BatchNormGrad


class SqueezeExciteGrad(NamedTuple):
    """Gradients of ``squeeze_excite``: ``dpooled`` in the accumulation dtype, the others each in that of what it is of."""

    dpooled: Tensor  # [N, C]
    dw1: Tensor  # [R, C]
    db1: Tensor | None  # [R]
    dw2: Tensor  # [C, R]
    db2: Tensor | None  # [C]

    @staticmethod
    def of(
        dpooled: Tensor, gradients: Sequence[Tensor], weights: Sequence[Tensor | None]
    ) -> SqueezeExciteGrad:
        """Of ``gradients`` in any dtype, w1's, b1's, w2's and b2's; one that has no weight is left out."""
        pairs = zip(gradients, weights, strict=True)
        return SqueezeExciteGrad(dpooled, *(None if w is None else g.to(w.dtype) for g, w in pairs))  # type: ignore[arg-type]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums and statistics are kept in: fp64 for fp64 tensors, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
