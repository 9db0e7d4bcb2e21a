"""The native entry points, and how names become the numbers they take."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from ...types import Affine, RunningNorm
from .. import native
from ..reference.activations import NUMBER as NUMBER


@cache
def kernels() -> SimpleNamespace:
    """The overloads themselves: resolving them anew costs about 2 us a call."""
    names = (
        *("depthwise_forward", "depthwise_backward", "elementwise", "elementwise_", "squeeze_excite"),
        *(
            "batch_norm_backward_finalize",
            "batch_norm_finalize",
            "batch_norm_fold",
            "batch_norm_reduce",
            "batch_norm_input_grad",
            "channel_stats",
            "gate_and_norm_sums",
            "gate_batch_norm_sums",
            "mbconv_inference",
            "pointwise_backward",
            "pointwise_forward",
            "squeeze_excite_backward",
        ),
    )
    return SimpleNamespace(**{name: getattr(native.ops(), name).default for name in names})


def wide(vector: Tensor | None) -> Tensor | None:
    """The native functions take vectors in fp32 alone."""
    return None if vector is None else vector.to(torch.float32)


def scale_and_shift(affine: Affine | RunningNorm | None) -> tuple[Tensor | None, Tensor | None]:
    """The two vectors of an affine, fp32; a BatchNorm is folded."""
    if not isinstance(affine, RunningNorm):
        return affine or (None, None)
    vectors = kernels().batch_norm_fold(*map(wide, affine[:4]), affine.eps)
    return vectors[3], vectors[4]


def per_channel(row_scale: Tensor | None, channels: int) -> Tensor | None:
    """[N] -> [N, C], the kernel's multiplier."""
    row_scale = wide(row_scale)
    return None if row_scale is None else row_scale[:, None].expand(-1, channels)
