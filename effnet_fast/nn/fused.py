"""Running a block of modules through the fused op: gather tensors, choose the path, update statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import dispatch
from ..backend.cuda import block as cuda_block
from ..errors import BackendError, UnsupportedBlockError
from ..ops.declare import autocast_enabled, constant_result, is_unwatched
from ..ops.mbconv import check_input, run_mbconv
from ..ops.mbconv_types import BatchNorm, Settings, Weights
from ..types import Running, accumulation_dtype, same_padding
from . import tensors as block_tensors
from .observed import recomputed
from .parts import ConvBN, MBConvParts, batch_statistics, uses_batch_statistics
from .small_images import check_worth


def autocasts(x: Tensor) -> bool:
    """Whether autocast chooses the dtype for a tensor like ``x``, as it does for PyTorch's convolutions."""
    return autocast_enabled(x.device.type) and x.dtype != torch.float64


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype the block computes in."""
    return torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype


def group_of(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> str:
    """The process group whose batches share this BatchNorm's statistics, by name, as ``nn.SyncBatchNorm`` decides."""
    if not isinstance(bn, nn.SyncBatchNorm) or not bn.training:
        return ""
    if not dist.is_available() or not dist.is_initialized():
        return ""
    group = dist.group.WORLD if bn.process_group is None else bn.process_group
    return group.group_name if dist.get_world_size(group) > 1 else ""


def needs_backward(parts: MBConvParts, x: Tensor) -> bool:
    """Whether the training kernels are needed: for a gradient, or for the batch's statistics."""
    if uses_batch_statistics(parts):
        return True
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p.requires_grad for p in _parameters(parts))


def _parameters(parts: MBConvParts) -> Iterator[Tensor]:
    """One after the other, because the first usually answers what is asked of all."""
    se = parts.squeeze_excite
    modules = [module for part in parts[:3] if part is not None for module in (part.conv, part.bn)]  # type: ignore[union-attr]
    for module in (*modules, *(() if se is None else (se.fc1, se.fc2))):
        yield from (t for t in (module.weight, module.bias) if t is not None)


#: Of :func:`backends_of`, by everything it asks.
_answers: dict[tuple[Any, ...], tuple[str, str]] = {}


@constant_result
def backends_of(
    device: torch.device, dtype: torch.dtype, training: bool, statistics: bool, kernel: int, stride: int
) -> tuple[str, str]:
    """(backends, "") that would run a block, or ("", reason) to leave it to PyTorch.

    Left to itself the package does not run a block on the reference kernels: PyTorch's own modules are faster.
    """
    asked = (
        device,
        dtype,
        training,
        statistics,
        kernel,
        stride,
        dispatch.forced_backends(),
        dispatch.version,
    )
    found = _answers.get(asked)
    if found is None:
        found = _answers[asked] = _backends_of(*asked[:6])
    return found


def _backends_of(
    device: torch.device, dtype: torch.dtype, training: bool, statistics: bool, kernel: int, stride: int
) -> tuple[str, str]:
    facts = {"kernel_size": kernel, "stride": stride}
    wanted: list[tuple[str, dict[str, Any]]]
    wanted = [("depthwise", {"stats": statistics, **facts}), ("pointwise", {"stats": statistics})]
    if training:
        wanted += [("depthwise_backward", facts), ("pointwise_backward", {})]
    return choices_of(wanted, device, dtype)


def choices_of(
    wanted: list[tuple[str, dict[str, Any]]], device: torch.device, dtype: torch.dtype
) -> tuple[str, str]:
    """(backends, "") that would run these ops, or ("", reason)."""
    try:
        choices = [dispatch.choose_for_modules(op, device, dtype, **extra) for op, extra in wanted]
    except BackendError as error:
        if dispatch.chosen_by_user():
            raise
        return "", str(error)
    for (op, _), choice in zip(wanted, choices, strict=True):
        if choice.backend == "reference" and not dispatch.chosen_by_user():
            reasons = "; ".join(f"{backend}: {reason}" for backend, reason in choice.passed_over)
            return "", f"no fast {op} here ({reasons})"
    names = dict.fromkeys(choice.backend for choice in choices)
    return " + ".join(names), ""


def plan(parts: MBConvParts, device: torch.device, dtype: torch.dtype, training: bool) -> str:
    """The backends that would run the block.

    Raises:
        UnsupportedBlockError: the block is better left to PyTorch; the message is the reason.
    """
    conv = parts.depthwise.conv
    statistics = uses_batch_statistics(parts)
    kernel, stride = conv.weight.shape[-1], conv.stride[0]
    names, reason = backends_of(device, dtype, training, statistics, kernel, stride)
    if reason:
        raise UnsupportedBlockError(reason)
    return names


def _check_count(parts: MBConvParts, x: Tensor, padding: tuple[int, int, int, int], training: bool) -> None:
    """Empty batches and statistics of one value are left to PyTorch, which treats or refuses them in its own way."""
    n, _, height, width = x.shape
    conv = parts.depthwise.conv
    kernel, stride = conv.weight.shape[-1], conv.stride[0]
    left, right, top, bottom = padding
    size = (height + top + bottom - kernel) // stride + 1, (width + left + right - kernel) // stride + 1
    out = size[0] * size[1]
    if parts.residual and size != (height, width):
        raise UnsupportedBlockError("the residual connection joins images of different sizes")
    if height * width and all(group_of(part.bn) for part in parts[:3] if part is not None):  # type: ignore[union-attr]
        # The statistics are those of other processes too, which wait for this one's part.
        return
    if n == 0 or height * width == 0:
        raise UnsupportedBlockError("the batch is empty")
    if training and (n * out <= 1 or n * height * width <= 1):
        raise UnsupportedBlockError("one value per channel")


def norm_of(bn: nn.BatchNorm2d, wide: torch.dtype | None) -> BatchNorm:
    """The module's vectors, in the dtype ``wide`` or as they are."""
    batch = batch_statistics(bn)
    vectors = (bn.weight, bn.bias, None if batch else bn.running_mean, None if batch else bn.running_var)
    return BatchNorm(
        *(t if t is None or wide is None else t.to(wide) for t in vectors), bn.eps, batch, group_of(bn)
    )


def running_norm_of(bn: nn.BatchNorm2d, vectors: list[Tensor | None]) -> BatchNorm:
    """The module's vectors as they are, for inference."""
    return BatchNorm(*vectors, bn.eps, False)


def _inference_weights(parts: MBConvParts, flat: list[Tensor | None], dtype: torch.dtype) -> Weights:
    """The modules' own tensors: kernels of inference take vectors of any dtype and matrices of any shape."""

    def conv(weight: Tensor | None) -> Any:
        # float32 is rounded by the kernels as they load it, which CUDA's do.
        if weight is None or weight.dtype == dtype or (weight.is_cuda and weight.dtype == torch.float32):
            return weight
        return weight.to(dtype)

    def norm(part: ConvBN | None, at: int) -> Any:
        return None if part is None else running_norm_of(part.bn, flat[at + 1 : at + 5])

    first, stencil, last = block_tensors.EXPAND, block_tensors.DEPTHWISE, block_tensors.PROJECT
    return Weights(
        *(conv(flat[first]), norm(parts.expand, first)),
        *(conv(flat[stencil]), norm(parts.depthwise, stencil)),
        *(conv(flat[last]), norm(parts.project, last)),
        *flat[block_tensors.SE :],
    )


def _run_again(parts: MBConvParts, x: Tensor) -> Tensor | None:
    """The shortest way, for inference on CUDA: as the block ran before. The block is known to be what it was, and the
    native call compares its tensors with what they were. ``None`` where it has to go a longer way.
    """
    if parts.slots is None or torch.is_grad_enabled() or not _is_plain(x, compute_dtype(x)):
        return None
    found = parts.slots.prepared(cuda_block.asked(x))
    return None if found is None else cuda_block.run(found[0], x, found[1])


def _run_prepared(
    parts: MBConvParts, x: Tensor, dtype: torch.dtype, flat: list[Tensor | None], settings: Settings
) -> Tensor | None:
    """As another block of the same shapes and settings ran, or this one with other tensors. ``None`` where it has to go
    the long way, on which it may be prepared.
    """
    if not _is_plain(x, dtype):
        return None
    eps = (0.0 if parts.expand is None else parts.expand.bn.eps, parts.depthwise.bn.eps, parts.project.bn.eps)
    found = cuda_block.find(cuda_block.key(x, settings, eps), x, [t for t in flat if t is not None])
    if found is None:
        return None
    if parts.slots is not None:
        parts.slots.prepare(cuda_block.asked(x), found[1])
    return found[0]


def _is_plain(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype and type(x) is Tensor and is_unwatched()


def _training_weights(parts: MBConvParts, flat: list[Tensor | None]) -> Weights:
    """The modules' own tensors: the op rounds the weights itself, and makes each gradient in its own dtype."""

    def norm(part: ConvBN | None, at: int) -> Any:
        if part is None:
            return None
        batch = batch_statistics(part.bn)
        statistics = (None, None) if batch else flat[at + 3 : at + 5]
        return BatchNorm(*flat[at + 1 : at + 3], *statistics, part.bn.eps, batch, group_of(part.bn))

    first, stencil, last = block_tensors.EXPAND, block_tensors.DEPTHWISE, block_tensors.PROJECT
    return Weights(
        *(flat[first], norm(parts.expand, first)),
        *(flat[stencil], norm(parts.depthwise, stencil)),  # type: ignore[arg-type]
        *(flat[last], norm(parts.project, last)),  # type: ignore[arg-type]
        *flat[block_tensors.SE :],
    )


def _settings(parts: MBConvParts, padding: tuple[int, int, int, int]) -> Settings:
    se = parts.squeeze_excite
    return Settings(
        parts.depthwise.conv.stride[0],
        padding,
        "none" if parts.expand is None else parts.expand.act,
        parts.depthwise.act,
        "silu" if se is None else se.act,
        "sigmoid" if se is None else se.gate,
        parts.residual,
        parts.recompute_expand and parts.expand is not None,
    )


def run(parts: MBConvParts, x: Tensor) -> Tensor:
    """The block's forward through the fused op, running statistics included.

    Raises:
        UnsupportedBlockError: this call is better left to the block's own modules; nothing was changed.
    """
    if x.is_cuda:
        y = _run_again(parts, x)
        if y is not None:
            return y
    dtype = compute_dtype(x)
    training = needs_backward(parts, x)
    if training:
        check_worth(x, parts)
    flat = block_tensors.of_block(parts)
    padding = parts.padding
    if padding == "same":
        stencil = flat[block_tensors.DEPTHWISE]
        padding = same_padding(x.shape[2], x.shape[3], stencil.shape[-1], parts.depthwise.conv.stride[0])  # type: ignore[union-attr]
    settings = _settings(parts, padding)
    if x.is_cuda and not training and parts.row_scale is None:
        y = _run_prepared(parts, x, dtype, flat, settings)
        if y is not None:
            return y
    plan(parts, x.device, dtype, training)
    _check_count(parts, x, padding, training)
    x = x.to(dtype)
    weights = _training_weights(parts, flat) if training else _inference_weights(parts, flat, dtype)
    row_scale = random = None
    if parts.row_scale is not None and parts.residual:
        # Where the block's own modules take over they draw the same numbers again.
        random = torch.get_rng_state() if x.is_cpu and not torch.compiler.is_compiling() else None
        row_scale = parts.row_scale(x).flatten()
        if not training:
            row_scale = row_scale.to(accumulation_dtype(dtype))
    check_input(x, weights)
    running = tuple(
        None if part is None else running_of(part.bn)
        for part in (parts.expand, parts.depthwise, parts.project)
    )
    try:
        return run_mbconv(x, weights, settings, row_scale, not training, running).y  # type: ignore[arg-type]
    except UnsupportedBlockError:
        if random is not None:
            torch.set_rng_state(random)
        raise


def running_of(bn: nn.BatchNorm2d) -> Running | None:
    """The running statistics that this forward moves, as ``nn.BatchNorm2d.forward`` decides.

    Where gradient checkpointing runs it again the batch has been counted; PyTorch's own modules count it twice there.
    """
    if not (bn.training and bn.track_running_stats) or recomputed():
        return None
    return Running(bn.running_mean, bn.running_var, bn.num_batches_tracked, bn.momentum)
