"""The reference backend: every kernel of the package in plain PyTorch.

Slow and obvious on purpose: it is the oracle of every test and the definition of every op's meaning. It runs
on any device and any floating dtype (fp64 included, for gradient checks). Inputs may have any strides; outputs
are channels_last. Values are rounded to the storage dtype once, where they are stored; sums, statistics and
BatchNorm vectors stay in the accumulation dtype (fp32, or fp64 for fp64 tensors).
"""

from .activations import ACTIVATIONS, activation, activation_grad
from .batch_norm import (
    batch_norm_act_grad,
    batch_norm_backward_finalize,
    batch_norm_finalize,
    batch_norm_fold,
    batch_norm_reduce,
    channel_stats,
)
from .common import merge_weight_grads
from .depthwise import depthwise, depthwise_backward
from .elementwise import affine_pool, affine_residual
from .network import compile_network
from .pointwise import pointwise, pointwise_backward
from .squeeze_excite import (
    gate_batch_norm_finalize,
    gate_batch_norm_sums,
    squeeze_excite,
    squeeze_excite_backward,
)

__all__ = [
    "ACTIVATIONS",
    "activation",
    "activation_grad",
    "affine_pool",
    "affine_residual",
    "batch_norm_act_grad",
    "batch_norm_backward_finalize",
    "batch_norm_finalize",
    "batch_norm_fold",
    "batch_norm_reduce",
    "channel_stats",
    "compile_network",
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
