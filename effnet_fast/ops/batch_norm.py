"""From statistics to the affine that the next convolution applies as it loads, as an autograd op."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch
from ..errors import UnsupportedBlockError
from ..types import Affine, accumulation_dtype
from . import checks
from .declare import differentiable, kernel_op


def batch_norm_finalize(
    stats: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Affine:
    """The affine of a BatchNorm: ``scale = weight / sqrt(var + eps)``, ``shift = bias - mean * scale``.

    With the ``stats`` of :func:`pointwise` or :func:`depthwise` this is
    :func:`torch.nn.functional.batch_norm` in training mode, split so that the normalization itself rides on the
    next convolution (``in_affine=``); gradients flow through the statistics. Running statistics are the caller's:
    ``stats`` holds what to update them with.

    Args:
        stats: [2, C], mean and biased variance, float32 (float64).
        weight, bias: [C] or ``None`` (ones, zeros).
        eps: added to the variance.

    Returns:
        ``(scale, shift)``, each [C].

    Raises:
        EffnetFastError: an argument of the wrong kind, shape, dtype or device.
    """
    op = "ops.batch_norm_finalize"
    ok = isinstance(stats, Tensor) and stats.dim() == 2 and stats.shape[0] == 2
    if not ok or stats.dtype not in (torch.float32, torch.float64):
        raise checks.fail(op, "stats", "a float32 or float64 tensor [2, C]", checks.describe(stats))
    shape = stats.shape[1:]
    weight = None if weight is None else checks.vector(op, "weight", weight, shape, stats)
    bias = None if bias is None else checks.vector(op, "bias", bias, shape, stats)
    return Affine(*_batch_norm_finalize(stats, weight, bias, eps).unbind(0))


#: Above it the backward's coefficients, which hold one over the variance, run out of fp32's exponents.
LARGEST_VARIANCE = 1e30


def check_variances(*stats: Tensor) -> None:
    """Leave to PyTorch, which computes them in double on the CPU, variances that fp32 does not hold, and NaN.

    Args:
        stats: [5, C] each (see BatchNormStats), or empty.

    Raises:
        UnsupportedBlockError: a variance is not finite or too large.
    """
    for vectors in stats:
        if vectors.numel() and not vectors[1].sum().item() < LARGEST_VARIANCE:
            raise UnsupportedBlockError("a variance is not finite, or too large for fp32")


@kernel_op("batch_norm_finalize")
def _batch_norm_finalize(stats: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    mean, var = stats.contiguous().unbind(0)
    run = dispatch.select("batch_norm_fold", stats)
    return run(weight, bias, mean, var, eps).vectors[3:5].clone()


@_batch_norm_finalize.register_fake
def _(stats, weight, bias, eps):  # type: ignore[no-untyped-def]
    return stats.new_empty(stats.shape, dtype=accumulation_dtype(stats.dtype))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    stats, weight, bias, eps = inputs
    ctx.save_for_backward(stats, weight)
    ctx.eps = eps
    ctx.has_bias = bias is not None


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    stats, weight = ctx.saved_tensors
    mean, var = stats.unbind(0)
    dscale, dshift = grad.unbind(0)
    invstd = torch.rsqrt(var + ctx.eps)
    scale = invstd if weight is None else weight * invstd
    through_scale = dscale - mean * dshift
    dvar = -0.5 * through_scale * scale * invstd.square()
    return (
        torch.stack([-scale * dshift, dvar]),
        None if weight is None else through_scale * invstd,
        dshift if ctx.has_bias else None,
        None,
    )


differentiable(_batch_norm_finalize, _backward, _setup_context, saved={0: 0, 1: 1}, unneeded=(2,))
