"""An MBConv block in inference as one native call: the stencils of ``_cuda`` and the 1x1 convolutions that Triton compiled.

What follows from shapes, dtypes and settings is prepared once and kept in a small tensor (csrc/cuda/block.h). The call
itself compares every tensor with what was prepared for and launches four kernels; where something differs, nothing is
launched and the block runs op by op or is prepared anew. No weight and no vector of a BatchNorm is kept.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import dispatch
from ...kernels import tuning
from .. import native
from ..reference.activations import NUMBER

if TYPE_CHECKING:
    from ...ops.mbconv_types import Settings, Weights

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Preparations kept; sizes that change with every batch must not fill the memory.
_REMEMBERED = 4096
#: Preparations for the same shapes and settings: blocks may differ in the dtypes of their vectors.
_VARIANTS = 4

_prepared: dict[tuple[Any, ...], list[Tensor]] = {}


class _Slots:
    """Numbers of a block's tensors, those of ``enum Slot`` in csrc/cuda/block.h."""

    X, EXPAND, DEPTHWISE, PROJECT, W1 = 0, 1, 6, 11, 16
    EXPANDED, ACTIVATED, GATE, Y = 20, 21, 22, 23


def asked(x: Tensor) -> tuple[Any, ...]:
    """What of a call decides how a block is launched, besides the block."""
    choices = dispatch.forced_backends(), dispatch.version, tuning.version, _tf32(x)
    return (x.shape, x.dtype, x.device, *choices)


def key(x: Tensor, settings: Settings, eps: tuple[float, float, float]) -> tuple[Any, ...]:
    """What a block is prepared for besides its tensors."""
    return (settings, eps, *asked(x))


def find(prepared_for: tuple[Any, ...], x: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The block with one of the preparations for a key, and that preparation; ``None`` where none is for these tensors.

    Args:
        tensors: the block's tensors that are there, in the order of ops/mbconv_types.py.
    """
    for prepared in _prepared.get(prepared_for, ()):
        y = run(prepared, x, tensors)
        if y is not None:
            return y, prepared
    return None


def run(prepared: Tensor, x: Tensor, tensors: list[Tensor]) -> Tensor | None:
    """The block as it was prepared, or ``None`` where it was prepared for other tensors: nothing was launched."""
    if not _launches_plainly():
        return None
    y = _ops().mbconv_run(x, tensors, prepared)
    return y if y.dim() == 4 else None


def mbconv_inference(x: Tensor, weights: Weights, settings: Settings) -> Tensor | None:
    """The block with running statistics, prepared if it was not; ``None`` where it has to run op by op.

    Args:
        x: [N, Cin, H, W], channels_last, with pixels, on a CUDA device.
        weights: 1x1 convolutions as matrices or as the modules have them.
    """
    if not _launches_plainly():
        return None
    flat = weights.tensors
    tensors = [t for t in flat if t is not None]
    norms = (weights.expand_bn, weights.depthwise_bn, weights.project_bn)
    eps = (0.0 if norms[0] is None else norms[0].eps, weights.depthwise_bn.eps, weights.project_bn.eps)
    wanted = key(x, settings, eps)
    found = find(wanted, x, tensors)
    if found is not None:
        return found[0]
    if wanted not in _prepared and len(_prepared) >= _REMEMBERED:
        _prepared.clear()
    variants = _prepared.setdefault(wanted, [])
    if len(variants) >= _VARIANTS:
        return None
    prepared = _prepare(x, weights, settings, eps)
    if prepared is None:
        return None
    variants.append(prepared)
    return run(prepared, x, tensors)


def _launches_plainly() -> bool:
    """Whether nobody counts or listens to launches, and Triton's may be made by others than Triton."""
    try:
        from ...kernels import launch
    except ImportError:
        return False
    return launch.is_short() and not launch.is_watched()


def _prepare(
    x: Tensor, weights: Weights, settings: Settings, eps: tuple[float, float, float]
) -> Tensor | None:
    """Everything but the tensors; ``None`` where other backends run a part of the block, or memory is not as it must be."""
    from ...kernels import pointwise

    if not _backends_fit(x, weights, settings) or torch.cuda.is_current_stream_capturing():
        return None
    flat = weights.tensors
    if any(t is not None and not _is_usable(t, x) for t in (x, *flat)) or not x.is_contiguous(
        memory_format=torch.channels_last
    ):
        return None
    convolutions, excite = (weights.expand, weights.depthwise, weights.project), weights[6:]
    if any(t is not None and t.dtype not in (x.dtype, torch.float32) for t in convolutions):
        return None
    if len({t.dtype for t in excite if t is not None}) > 1:
        return None
    n, _, height, width = x.shape
    kernel, (left, right, top, bottom) = weights.depthwise.shape[-1], settings.padding
    out = [
        (size + pad - kernel) // settings.stride + 1
        for size, pad in ((height, top + bottom), (width, left + right))
    ]
    channels = weights.depthwise.shape[0]
    gate = None if weights.w1 is None else torch.empty(n, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        expand: list[int] | None = []
        if weights.expand is not None:
            assert weights.expand_bn is not None
            forward = pointwise.pointwise_launch(
                x, weights.expand, affine=weights.expand_bn.running, act=settings.expand_act
            )
            expand = forward.prepared.native(
                forward.tensors, _slots(_Slots.X, _Slots.EXPAND, _Slots.EXPANDED, forward.tensors)
            )
        a2 = torch.empty(
            (n, channels, *out), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        forward = pointwise.pointwise_launch(
            *(a2, weights.project),
            gate=gate,
            affine=weights.project_bn.running,
            residual=x if settings.residual else None,
        )
        project = forward.prepared.native(
            forward.tensors, _slots(_Slots.ACTIVATED, _Slots.PROJECT, _Slots.Y, forward.tensors)
        )
    if expand is None or project is None:
        return None
    acts = [NUMBER[act] for act in (settings.depthwise_act, settings.se_act, settings.gate_act)]
    return _ops().mbconv_prepare(  # type: ignore[no-any-return]
        x, flat, eps, settings.stride, settings.padding, acts, expand, project
    )


def _slots(x: int, weight: int, y: int, tensors: tuple[Tensor | None, ...]) -> list[tuple[int, int] | None]:
    """The slots of the forward kernel's tensors, in its order."""
    norm = [weight + i for i in range(1, 5)]
    slots = [x, weight, y, None, None, _Slots.GATE, *norm, None, _Slots.X, None, None]
    return [None if slot is None or t is None else (slot, 0) for slot, t in zip(slots, tensors, strict=True)]


def _backends_fit(x: Tensor, weights: Weights, settings: Settings) -> bool:
    """Whether the op by op way would run the stencils on ``cuda`` and the 1x1 convolutions on ``triton``."""
    stencil = {"kernel_size": weights.depthwise.shape[-1], "stride": settings.stride, "stats": False}
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("depthwise", "cuda", stencil),
        ("pointwise", "triton", {"stats": False}),
    ]
    if weights.w1 is not None:
        wanted.append(("squeeze_excite", "cuda", {"hidden": weights.w1.shape[0]}))
    return all(dispatch.choose(op, x.device, x.dtype, **facts).backend == name for op, name, facts in wanted)


def _is_usable(t: Tensor, x: Tensor) -> bool:
    dense = t is x or t.is_contiguous()
    return dense and t.dtype in _DTYPES and t.device == x.device and t.data_ptr() % 16 == 0


def _tf32(x: Tensor) -> str:
    """The setting that fp32's 1x1 convolutions follow."""
    if x.dtype != torch.float32:
        return ""
    from ...kernels.runtime import dot_options

    return dot_options(x)["PRECISION"]  # type: ignore[no-any-return]


@cache
def _ops() -> Any:
    """The overloads themselves: resolving them anew costs 2 us a call."""
    names = native.ops()

    class Overloads:
        mbconv_prepare = names.mbconv_prepare.default
        mbconv_run = names.mbconv_run.default

    return Overloads
