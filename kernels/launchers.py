"""Every op of the Triton backend under the reference's names; importing this imports Triton."""

from .batch_norm import (
    batch_norm_backward_finalize,
    batch_norm_finalize,
    batch_norm_fold,
    batch_norm_reduce,
    channel_stats,
    gate_batch_norm_finalize,
)
from .depthwise import depthwise, depthwise_backward
from .elementwise import affine_pool, affine_residual, batch_norm_act_grad
from .merge import merge_weight_grads
from .pointwise import pointwise, pointwise_backward
from .squeeze_excite import gate_batch_norm_sums, squeeze_excite, squeeze_excite_backward

__all__ = [
    "affine_pool",
    "affine_residual",
    "batch_norm_act_grad",
    "batch_norm_backward_finalize",
    "batch_norm_finalize",
    "batch_norm_fold",
    "batch_norm_reduce",
    "channel_stats",
    "depthwise",
    "depthwise_backward",
    "gate_batch_norm_finalize",
    "gate_batch_norm_sums",
    "merge_weight_grads",
    "pointwise",
    "pointwise_backward",
    "squeeze_excite",
    "squeeze_excite_backward",
]
