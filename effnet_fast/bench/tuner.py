"""Measures every candidate tile configuration on the GPU at hand; ``effnet-fast tune`` runs it.

The work measured is a training step and an inference of one block of every stage of a model, launch by launch, so
that each configuration is judged by the shapes it will meet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..errors import EffnetFastError
from ..kernels import configs, tuning
from ..models.config import VARIANTS, Stage, scaled_stages
from ..ops import mbconv_kernels as blocks
from ..ops.mbconv_backward import training_backward
from ..ops.mbconv_types import BatchNorm, Needs, Settings, Weights

#: One op with its arguments, to be run again.
Call = Callable[[], Any]


def tune(
    model: str = "b0",
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 64,
    device: str | torch.device = "cuda",
    report: Callable[[str], None] = print,
    measure: Callable[[Callable[[], Any]], float] | None = None,
) -> Path:
    """Store the fastest configuration of every kernel and shape class for this GPU.

    Args:
        model: whose block shapes to measure, ``b0`` to ``b7``.
        dtype, batch: of the activations.
        report: called with one line per kernel and shape class.
        measure: seconds (any unit) a callable takes; by default ``triton.testing.do_bench``.

    Returns:
        The cache file, which later launches on this GPU model read.

    Raises:
        EffnetFastError: unknown model, or Triton cannot run here (with the reason).
    """
    from ..kernels.runtime import can_run

    if model not in VARIANTS:
        raise EffnetFastError(f"tune: model: expected one of {', '.join(VARIANTS)}, got {model!r}")
    device = torch.device(device)
    ok, reason = can_run("pointwise", device, dtype)
    if not ok:
        raise EffnetFastError(f"tune: {reason}")
    if measure is None:
        from triton.testing import do_bench

        measure = do_bench
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    # A folder that cannot be written is told before the measurements, not after.
    tuning.store(name, {})
    winners: dict[str, Any] = {}
    for (kernel, klass), calls in sorted(_calls(model, dtype, batch, device).items()):
        candidates: list[Any] = configs.rows(kernel, dtype, tuning.architecture(device), klass)
        if kernel == "pointwise_backward":
            # One kernel per gradient is a candidate too.
            candidates.append(None)
        if len(candidates) < 2:
            continue
        times: list[float] = []
        for config in candidates:
            with tuning.force(kernel, config):
                times.append(sum(float(measure(call)) for call in calls))
        best = min(range(len(times)), key=times.__getitem__)
        winners[tuning.entry_key(kernel, dtype, klass)] = candidates[best]
        report(f"{kernel}/{klass}: {candidates[best]}, {times[0] / max(times[best], 1e-12):.2f}x the default")
    return tuning.store(name, winners)


def _calls(
    model: str, dtype: torch.dtype, batch: int, device: torch.device
) -> dict[tuple[str, str], list[Call]]:
    """(kernel, shape class) -> the ops of the model's blocks that launch it."""
    variant = VARIANTS[model]
    size = -(-variant.resolution // 2)
    found: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for stage in scaled_stages(variant.width_mult, variant.depth_mult):
        for call in _record(stage, size, dtype, batch, device):
            with tuning.watch() as asked:
                call()
            for kernel, asked_size in asked:
                found[kernel, configs.shape_class(kernel, asked_size)].append(call)
        size = -(-size // stage.stride)
    return found


def _record(stage: Stage, size: int, dtype: torch.dtype, batch: int, device: torch.device) -> list[Call]:
    """Run a block once and keep every op it ran."""
    from ..kernels import launchers

    calls: list[Call] = []

    def recording(op: str, **facts: Any) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            calls.append(partial(getattr(launchers, op), *arguments, **options))
            return calls[-1]()

        return run

    x, weights, settings = random_block(stage, size, dtype, batch, device)
    with dispatch.answering(recording):
        y, saved = blocks.training_forward(x, weights, settings, None)
        needs = Needs(True, True, True, True)
        learnt = (weights.expand, weights.depthwise, weights.project)
        training_backward(y, x, saved, weights, settings, None, needs, learnt)
        blocks.inference(x, weights, settings, None)
    return calls


def random_block(
    stage: Stage, size: int, dtype: torch.dtype, batch: int, device: torch.device
) -> tuple[Tensor, Weights, Settings]:
    """The input, weights and settings of a stage's first block, in training mode; ``size`` is that of the input."""
    cin, cout, k = stage.in_channels, stage.out_channels, stage.kernel_size
    c = int(cin * stage.expand_ratio)
    hidden = max(1, cin // 4)

    def weight(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=dtype, device=device) - 0.5

    def norm(channels: int) -> BatchNorm:
        ones = torch.ones(channels, dtype=torch.float32, device=device)
        zeros = torch.zeros_like(ones)
        return BatchNorm(ones, zeros, zeros, ones, 1e-3, True)

    expands = c != cin
    weights = Weights(
        weight(c, cin) if expands else None,
        norm(c) if expands else None,
        weight(c, 1, k, k),
        norm(c),
        weight(cout, c),
        norm(cout),
        weight(hidden, c),
        weight(hidden),
        weight(c, hidden),
        weight(c),
    )
    residual = stage.stride == 1 and cin == cout
    settings = Settings(stage.stride, (k // 2,) * 4, "silu", "silu", "silu", "sigmoid", residual)
    x = torch.rand((batch, cin, size, size), dtype=dtype, device=device)
    return x.contiguous(memory_format=torch.channels_last), weights, settings
