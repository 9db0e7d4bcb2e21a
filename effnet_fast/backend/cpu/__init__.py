"""The CPU backend: C++ kernels behind the reference's signatures, inference and training in fp32 and bf16.

Everything is the package's own (``csrc/cpu/``), except that the 1x1 convolution in training multiplies with PyTorch's
GEMM in bf16 (docs/cpu_training.md). In inference a whole block is one call (docs/cpu.md).
"""

from __future__ import annotations

from typing import Any

import torch

from ...types import stencil_refusal
from .. import native
from .block import mbconv_inference
from .depthwise import depthwise, depthwise_backward
from .engine import compile_network
from .passes import affine_pool, affine_residual, batch_norm_act_grad, batch_norm_reduce, channel_stats
from .pointwise import pointwise, pointwise_backward
from .vectors import (
    batch_norm_backward_finalize,
    batch_norm_finalize,
    batch_norm_fold,
    gate_batch_norm_finalize,
    gate_batch_norm_sums,
    squeeze_excite,
    squeeze_excite_backward,
)

__all__ = [
    "affine_pool",
    "affine_residual",
    "batch_norm_act_grad",
    "batch_norm_backward_finalize",
    "batch_norm_finalize",
    "batch_norm_fold",
    "batch_norm_reduce",
    "can_run",
    "channel_stats",
    "compile_network",
    "depthwise",
    "depthwise_backward",
    "gate_batch_norm_finalize",
    "gate_batch_norm_sums",
    "mbconv_inference",
    "pointwise",
    "pointwise_backward",
    "squeeze_excite",
    "squeeze_excite_backward",
]


def can_run(op: str, device: torch.device, dtype: torch.dtype, **facts: Any) -> tuple[bool, str]:
    """Whether this backend runs ``op``, and if not, why: one clause for the user."""
    if device.type != "cpu":
        return False, f"its kernels run on the CPU, not on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        return False, f"{dtype} is neither float32 nor bfloat16"
    refusal = stencil_refusal(**facts)
    if refusal:
        return False, refusal
    return native.available("_ops")
