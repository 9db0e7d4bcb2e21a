"""The CUDA C++ backend: depthwise convolution and squeeze-and-excite, forward and backward.

The kernels are in ``csrc/cuda/`` (docs/kernels/depthwise_cuda.md). Functions have the names and signatures of
:mod:`effnet_fast.backend.reference`; tensors are dense channels_last, vectors fp32. Every result is the same from run to run: no
sum uses atomics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ... import build
from ...records import DepthwiseIncoming, Source, conv_grad
from ...types import Affine, ConvGrad, ConvOut, Padding, RunningNorm, SqueezeExciteGrad, stencil_refusal
from .. import native
from ..reference.activations import NUMBER
from .block import mbconv_inference as mbconv_inference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: The oldest GPU the library has machine code for.
_OLDEST = (7, 5)


def can_run(op: str, device: torch.device, dtype: torch.dtype, **facts: Any) -> tuple[bool, str]:
    """Whether this backend runs ``op``, and if not, why: one clause for the user. Touches no GPU for other devices."""
    if device.type != "cuda":
        return False, f"its kernels run on a CUDA device, not on {device.type}"
    if torch.version.hip is not None:
        return False, "its kernels are for NVIDIA GPUs, and this PyTorch is built for AMD"
    if dtype not in _DTYPES:
        return False, f"{dtype} is none of float32, float16, bfloat16"
    refusal = stencil_refusal(**facts)
    if refusal:
        return False, refusal
    loaded, reason = native.available("_cuda")
    if not loaded:
        return False, reason
    if not torch.cuda.is_available():
        return False, "PyTorch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return False, f"it needs compute capability 7.5, and {device} has {capability[0]}.{capability[1]}"
    if dtype == torch.bfloat16 and capability < (8, 0):
        return (
            False,
            f"bfloat16 needs compute capability 8.0, and {device} has {capability[0]}.{capability[1]}",
        )
    archs = native.status("_cuda").facts.get("archs", ())
    if archs and not has_code(archs, capability):
        built = ", ".join(f"sm_{arch}" for arch in archs)
        missing = f"{capability[0]}{capability[1]}"
        return (
            False,
            f"its library is built for {built} and {device} is sm_{missing}; to add it: {build.COMMAND} --archs {missing}",
        )
    return True, ""


def has_code(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a library built for ``archs`` ("80", "90a") has code that a GPU of this compute capability runs.

    Machine code runs on GPUs of its major version and no smaller minor version, that of "90a" on 9.0 alone. The newest
    is there as PTX too, which every later GPU compiles (CUDA C++ programming guide, application compatibility).
    """
    parsed = []
    for arch in archs:
        found = re.fullmatch(r"(\d+)(\d)([af]?)", arch)
        if found is not None:
            parsed.append(((int(found[1]), int(found[2])), found[3]))
    for built, kind in parsed:
        if built == capability or (kind != "a" and built[0] == capability[0] and built <= capability):
            return True
    return bool(parsed) and max(parsed) <= (capability, "") and not max(parsed)[1]


@cache
def _kernels() -> Any:
    loaded, reason = native.available("_cuda")
    if not loaded:
        raise ImportError(f"effnet_fast: native library _cuda is missing: {reason}")
    return native.ops()


def depthwise(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    in_affine: Affine | None = None,
    in_act: str = "none",
    affine: Affine | RunningNorm | None = None,
    act: str = "none",
    pool: bool = False,
    stats: bool = False,
    plan: int = -1,
) -> ConvOut:
    """As :func:`effnet_fast.backend.reference.depthwise`, in one launch; the pool of an image that is cut stays in parts.

    Args:
        plan: number of a launch plan (``_C.depthwise_plans``) instead of the planner's choice.
    """
    in_scale, in_shift = in_affine or (None, None)
    norm = (*affine[2:],) if isinstance(affine, RunningNorm) else (None, None, 0.0)
    scale, shift = (None, None) if affine is None else affine[:2]
    y, pooled, moments = _kernels().depthwise_forward(
        *(x, weight, stride, padding, in_scale, in_shift, NUMBER[in_act]),
        *(scale, shift, NUMBER[act], pool, stats, plan, *norm),
    )
    return ConvOut(y, pooled if pool else None, moments if stats else None)


def depthwise_backward(
    incoming: DepthwiseIncoming,
    source: Source,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    residual_grad: Tensor | None = None,
    need_dx: bool = True,
    need_dw: bool = True,
    parts: bool = False,
    plan: int = -1,
) -> ConvGrad:
    """As :func:`effnet_fast.backend.reference.depthwise_backward`: both gradients in one launch and a small merge.

    Args:
        plan: number of a launch plan (``_C.depthwise_plans``) instead of the planner's choice.
    """
    incoming = incoming.used
    dx, dweight, sums = _kernels().depthwise_backward(
        *(incoming.tensors, NUMBER[incoming.act], source.tensors, NUMBER[source.act]),
        *(weight, stride, padding, residual_grad, need_dx, need_dw, plan),
        merge=not parts,
    )
    return conv_grad(source, dx, dweight, sums, need_dx, need_dw)


def squeeze_excite(
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
) -> Tensor:
    """As :func:`effnet_fast.backend.reference.squeeze_excite`, the whole batch in one launch."""
    return _kernels().squeeze_excite(
        *(pooled, w1, _like(b1, w1), w2, _like(b2, w1)), NUMBER[act], NUMBER[gate_act]
    )


def squeeze_excite_backward(
    dgate: Tensor,
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
    area: int = 1,
) -> SqueezeExciteGrad:
    """As :func:`effnet_fast.backend.reference.squeeze_excite_backward`, the whole batch in one cooperative launch."""
    dpooled, *gradients = _kernels().squeeze_excite_backward(
        *(dgate, pooled, w1, _like(b1, w1), w2, _like(b2, w1)), NUMBER[act], NUMBER[gate_act], area
    )
    return SqueezeExciteGrad.of(dpooled, gradients, (w1, b1, w2, b2))


def _like(bias: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(weight.dtype)
