"""A whole block in one native call, for inference with weights as the model has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .entry_points import NUMBER, kernels

if TYPE_CHECKING:
    from ...ops.mbconv_types import BatchNorm, Settings, Weights


def mbconv_inference(x: Tensor, weights: Weights, settings: Settings) -> Tensor | None:
    """Expand, depthwise, squeeze-and-excite and project with running statistics, plus the residual; fp32 and bf16.

    Args:
        x: [N, Cin, H, W].
        weights: fp32 or bf16; they are packed on the way.

    Returns:
        [N, Cout, Ho, Wo], channels_last, in the dtype of ``x``; ``None`` where the block has to run op by op.
    """

    def fold(bn: BatchNorm | None) -> Tensor | None:
        if bn is None:
            return None
        wide = (None if t is None else t.float() for t in bn[:4])
        return kernels().batch_norm_fold(*wide, bn.eps)

    if weights.depthwise.dtype not in (torch.float32, torch.bfloat16):
        return None
    acts = (settings.expand_act, settings.depthwise_act, settings.se_act, settings.gate_act)
    return kernels().mbconv_inference(
        *(x, _matrix(weights.expand), fold(weights.expand_bn)),
        *(weights.depthwise, fold(weights.depthwise_bn)),
        *(_matrix(weights.project), fold(weights.project_bn)),
        *(_matrix(weights.w1), weights.b1, _matrix(weights.w2), weights.b2),
        *(settings.stride, settings.padding, [NUMBER[act] for act in acts], settings.residual),
    )


def _matrix(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.flatten(1)
