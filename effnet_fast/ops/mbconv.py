"""The whole MBConv block as one autograd op: the public function and its checks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..types import BatchNormStats, move_running
from . import checks
from .batch_norm import check_variances
from .declare import are_plain, shielded
from .mbconv_kernels import inference as inference_kernels
from .mbconv_ops import mbconv_inference, mbconv_training
from .mbconv_types import CONVS, BlockRunning, Settings, Weights
from .synchronized import JOINT_COUNT


class MBConvOut(NamedTuple):
    """``y`` and, after a training forward, the statistics each BatchNorm used ([5, C], see BatchNormStats).

    Synchronised ones have a sixth row: how many values, of all processes, the statistics are of.
    """

    y: Tensor
    expand_stats: Tensor | None
    depthwise_stats: Tensor | None
    project_stats: Tensor | None


def mbconv(
    x: Tensor,
    weights: Weights,
    settings: Settings,
    row_scale: Tensor | None = None,
    *,
    inference: bool | None = None,
) -> MBConvOut:
    """The MBConv block of MnasNet and EfficientNet (Tan and Le 2019), forward and backward fused.

    ``y = BN(project(gate * act(BN(depthwise(act(BN(expand(x)))))))) * row_scale + x``.

    Args:
        x: [N, Cin, H, W]; float32, float16, bfloat16 (or float64 on the reference backend). Computed in
            channels_last memory; other layouts are copied first.
        weights: see :class:`Weights`; convolution weights in the dtype of ``x``, vectors in float32 (float64).
        settings: see :class:`Settings`.
        row_scale: [N], stochastic depth's per-sample factor; no gradient flows to it.
        inference: run the inference kernels, which keep nothing for a backward. By default, when no gradient is
            needed and no BatchNorm is in training mode.

    Returns:
        ``y`` [N, Cout, Ho, Wo] in x's dtype, channels_last; and the statistics used. Updating running statistics
        is the caller's: an op that mutates cannot be differentiated.

    Raises:
        EffnetFastError: an argument of the wrong kind, shape, dtype or device.
        BackendError: no backend can run it.
    """
    _check(x, weights, settings, row_scale)
    if inference is None:
        wants_grad = any(t is not None and t.requires_grad for t in (x, *weights.tensors))
        statistics = any(bn is not None and bn.training for bn in weights.norms)
        inference = not statistics and not (torch.is_grad_enabled() and wants_grad)
    return run_mbconv(x, weights, settings, row_scale, inference)


def run_mbconv(
    x: Tensor,
    weights: Weights,
    settings: Settings,
    row_scale: Tensor | None,
    inference: bool,
    running: BlockRunning | None = None,
) -> MBConvOut:
    """:func:`mbconv` without the checks, for weights that come from modules whose constructors made them.

    After a training forward ``running`` (of a block of modules) has moved.

    Raises:
        UnsupportedBlockError: as :func:`check_variances`, with ``running``; nothing has moved.
    """
    flat = weights.tensors
    if inference and _is_plain([x, *(t for t in flat if t is not None)]):
        return MBConvOut(_inference(checks.channels_last(x), weights, settings, row_scale), None, None, None)
    norms = weights.norms
    eps = [0.0 if bn is None else bn.eps for bn in norms]
    training = [bn is not None and bn.training for bn in norms]
    scalars = (settings.stride, settings.padding, ",".join(settings[2:6]), settings.residual)
    if inference:
        return MBConvOut(mbconv_inference(x, *flat, row_scale, eps, *scalars), None, None, None)
    groups = ",".join("" if bn is None else bn.group for bn in norms)
    args = (x, *flat, row_scale, eps, training, *scalars, settings.recompute_expand, groups)

    def check(out: tuple[Tensor, ...]) -> None:
        check_variances(*out[6:9])

    joint = any(bn is not None and bn.group for bn in norms)
    modules = running is not None and any(training) and not joint
    running = running or (None, None, None)
    out, moved = mbconv_training.moving(running, args, check if modules else None)
    if not moved:
        values = x.shape[0] * x.shape[2] * x.shape[3], *(z.numel() // z.shape[1] for z in (out[2], out[3]))
        for old, vectors, count in zip(running, out[6:9], values, strict=True):
            if old is not None:
                joint = vectors[JOINT_COUNT] if vectors.shape[0] > JOINT_COUNT else count
                move_running(old, BatchNormStats(vectors), joint)
    return MBConvOut(out[0], None if weights.expand is None else out[6], out[7], out[8])


_inference = shielded(inference_kernels)


def _is_plain(tensors: list[Tensor]) -> bool:
    """Whether a call without a backward needs nothing of the dispatcher."""
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return not wants_grad and are_plain(tensors)


def check_input(x: Tensor, weights: Weights) -> None:
    """The part of the checks that concerns ``x``.

    Raises:
        EffnetFastError: ``x`` is not an image with the channels the weights are for.
    """
    op = "ops.mbconv"
    checks.check_image(op, "x", x)
    first = weights.depthwise if weights.expand is None else weights.expand
    channels = first.shape[0 if weights.expand is None else 1]
    if x.shape[1] != channels or x.device != first.device:
        raise checks.fail(op, "x", f"[N, {channels}, H, W] on {first.device}", checks.describe(x))


def _check(x: Tensor, weights: Weights, settings: Settings, row_scale: Tensor | None) -> None:
    op = "ops.mbconv"
    checks.check_image(op, "x", x)
    depthwise = weights.depthwise
    kernel = checks.stencil_size(op, "weights.depthwise", depthwise)
    channels, cin = depthwise.shape[0], x.shape[1]
    if weights.expand is not None:
        checks.check_tensor(op, "weights.expand", weights.expand, (channels, cin), x)
    checks.check_tensor(op, "weights.depthwise", depthwise, (channels, 1, kernel, kernel), x)
    if weights.expand is None and channels != cin:
        raise checks.fail(op, "x", f"[N, {channels}, H, W]", checks.describe(x))
    if not isinstance(weights.project, Tensor) or weights.project.dim() != 2:
        raise checks.fail(op, "weights.project", f"[Cout, {channels}]", checks.describe(weights.project))
    out_channels = weights.project.shape[0]
    checks.check_tensor(op, "weights.project", weights.project, (out_channels, channels), x)
    for name, size in zip(CONVS, (channels, channels, out_channels), strict=True):
        bn = getattr(weights, f"{name}_bn")
        for part in ("weight", "bias", "mean", "var"):
            t = None if bn is None else getattr(bn, part)
            if t is not None:
                checks.check_tensor(op, f"weights.{name}_bn.{part}", t, (size,), x, dtype=False)
    if weights.w1 is not None:
        squeezed = weights.w1.shape[0]
        shapes = {
            "w1": (squeezed, channels),
            "b1": (squeezed,),
            "w2": (channels, squeezed),
            "b2": (channels,),
        }
        for part, shape in shapes.items():
            t = getattr(weights, part)
            if t is not None or part == "w2":
                checks.check_tensor(op, f"weights.{part}", t, shape, x, dtype=False)
    if row_scale is not None:
        checks.check_tensor(op, "row_scale", row_scale, (x.shape[0],), x, dtype=False)
    checks.check_stride(op, "settings.stride", settings.stride)
    for argument in ("expand_act", "depthwise_act", "se_act"):
        checks.check_activation(op, f"settings.{argument}", getattr(settings, argument))
    checks.check_activation(op, "settings.gate_act", settings.gate_act, checks.GATES)
    checks.check_padding(op, settings.padding)
    size = checks.output_size(op, x, kernel, settings.stride, settings.padding)
    if settings.residual and (out_channels, *size) != tuple(x.shape[1:]):
        raise checks.fail(op, "settings.residual", "False where the block changes the shape", True)
