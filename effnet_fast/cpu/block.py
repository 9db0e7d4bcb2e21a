"""A whole block in one native call, for inference with weights as the model has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .entry_points import NUMBER, kernels

if TYPE_CHECKING:
    from ..ops.mbconv_kernels import BatchNorm, Settings, Weights


def mbconv_inference(x: Tensor, weights: Weights, settings: Settings) -> Tensor:
    """Expand, depthwise, squeeze-and-excite and project with running statistics, plus the residual; fp32 and bf16.

    Args:
        x: [N, Cin, H, W].
        weights: fp32 or bf16; they are packed on the way.

    Returns:
        [N, Cout, Ho, Wo], channels_last, in the dtype of ``x``.
    """

    def fold(bn: BatchNorm | None) -> Tensor | None:
        return None if bn is None else kernels().batch_norm_fold(bn.weight, bn.bias, bn.mean, bn.var, bn.eps)

    acts = (settings.expand_act, settings.depthwise_act, settings.se_act, settings.gate_act)
    return kernels().mbconv_inference(
        *(x, weights.expand, fold(weights.expand_bn)),
        *(weights.depthwise, fold(weights.depthwise_bn)),
        *(weights.project, fold(weights.project_bn)),
        *(weights.w1, weights.b1, weights.w2, weights.b2),
        *(settings.stride, settings.padding, [NUMBER[act] for act in acts], settings.residual),
    )
