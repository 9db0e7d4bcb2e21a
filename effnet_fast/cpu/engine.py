"""The CPU engine: a folded network packed once, then run by one native call (``csrc/cpu/engine/network.h``)."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..errors import EffnetFastError, UnsupportedBlockError
from ..inference.network import Block, Conv, Network
from .entry_points import NUMBER
from .packing import LAYOUT, Packer, huge_pages
from .units import in_units

__all__ = ["Program", "compile_network"]


def compile_network(network: Network, dtype: torch.dtype) -> Program:
    """Pack a network's weights for the CPU kernels.

    Args:
        network: convolutions with their BatchNorm folded, fp32.
        dtype: of the packed weights and of what is stored between layers, float32 or bfloat16. Sums are fp32.

    Raises:
        UnsupportedBlockError: a layer the kernels have no form of; the message is the reason.
        EffnetFastError: another dtype, or the native library is missing.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise EffnetFastError(f"compile_network: dtype: expected float32 or bfloat16, got {dtype}")
    available, reason = native.available("_ops")
    if not available:
        raise EffnetFastError(f"compile_network: the native library _ops is missing: {reason}")
    _check_network(network)
    packer = Packer(dtype)
    head, classifier = network.head, network.classifier
    records = [
        *(int(dtype == torch.bfloat16), len(network.blocks), int(network.pool)),
        *packer.conv(network.stem),
        *(packer.nothing() if head is None else packer.conv(head)),
        *(
            packer.no_linear()
            if classifier is None or head is None or not network.pool
            else packer.linear(*classifier)
        ),
    ]
    for original in network.blocks:
        block = in_units(original)
        se = block.squeeze_excite
        records += packer.nothing() if block.expand is None else packer.conv(block.expand)
        records += packer.depthwise(block.depthwise)
        records += packer.no_linear() if se is None else packer.linear(se.w1, se.b1, se.act)
        records += packer.no_linear() if se is None else packer.linear(se.w2, se.b2, se.gate)
        records += packer.conv(block.project)
        records.append(int(block.residual))
    numbers = torch.tensor(records, dtype=torch.int64, device="cpu")
    return Program(numbers, packer.buffer(), network.stem.weight.shape[1])


class Program:
    """A packed network. Threads may call :meth:`run` at the same time; each call has a workspace of its own."""

    def __init__(self, records: Tensor, weights: Tensor, channels: int) -> None:
        self._records, self._weights, self._channels = records, weights, channels
        self._plan = native.ops().network_plan.default
        self._run = native.ops().network_run.default
        self._plans: dict[tuple[int, int, int, int], list[int]] = {}
        self._workspaces: list[Tensor] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # The weights' order is the same on every processor; plans, workspaces and locks are made where it runs.
        return _restore, (LAYOUT, self._records, self._weights, self._channels)

    def run(self, x: Tensor) -> Tensor:
        """Logits [N, classes], pooled features [N, C] or features [N, C, H, W] (channels_last).

        Args:
            x: [N, Cin, H, W], float32 or bfloat16, any strides. The result is bfloat16 if ``x`` is, else float32.

        Raises:
            EffnetFastError: ``x`` does not fit the network; the message says what was expected.
        """
        out, _ = self._call(x, timed=False)
        return out

    def step_times(self, x: Tensor) -> list[tuple[int, int]]:
        """Run once and return ``(kind, nanoseconds)`` of every step, kinds numbered as in ``csrc/cpu/engine/network.h``."""
        _, times = self._call(x, timed=True)
        assert times is not None
        return times

    @property
    def bytes_packed(self) -> int:
        """Memory of the packed weights."""
        return self._weights.numel()

    def _call(self, x: Tensor, *, timed: bool) -> tuple[Tensor, list[tuple[int, int]] | None]:
        if x.dim() != 4 or x.shape[1] != self._channels:
            raise EffnetFastError(
                f"optimized model: x: expected [N, {self._channels}, H, W], got {list(x.shape)}"
            )
        if x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != "cpu":
            raise EffnetFastError(
                f"optimized model: x: expected float32 or bfloat16 on the CPU, got {x.dtype} on {x.device}"
            )
        if x.requires_grad:
            x = x.detach()
        workspace_bytes, steps, *shape = self._planned(x)
        out = torch.empty(shape, dtype=torch.float32, device="cpu")
        times = torch.empty(steps + 1, dtype=torch.int64, device="cpu") if timed else None
        workspace = self._take(workspace_bytes)
        try:
            self._run(x, self._records, self._weights, workspace, out, times)
        finally:
            with self._lock:
                self._workspaces.append(workspace)
        result = out.permute(0, 3, 1, 2) if len(shape) == 4 else out
        return result.to(x.dtype), None if times is None else _durations(times)

    def _planned(self, x: Tensor) -> list[int]:
        n, _, height, width = x.shape
        key = (n, height, width, torch.get_num_threads())
        plan = self._plans.get(key)
        if plan is None:
            if 0 in x.shape:
                raise EffnetFastError(f"optimized model: x: expected at least one pixel, got {list(x.shape)}")
            try:
                plan = self._plan(self._records, n, height, width)
            except RuntimeError as error:
                raise EffnetFastError(str(error).splitlines()[0]) from None
            self._plans[key] = plan
        return plan

    def _take(self, size: int) -> Tensor:
        """A workspace nobody else uses, kept from an earlier call where one is large enough."""
        with self._lock:
            for i, workspace in enumerate(self._workspaces):
                if workspace.numel() >= size:
                    return self._workspaces.pop(i)
            # One that is too small would only stay in the way.
            if self._workspaces:
                self._workspaces.pop()
        return huge_pages(size)


def _restore(layout: int, records: Tensor, weights: Tensor, channels: int) -> Program:
    """A program that was pickled.

    Raises:
        EffnetFastError: it was packed in another order than this version's, or its kernels are missing here.
    """
    if layout != LAYOUT:
        raise EffnetFastError(
            f"optimize: an optimized model of another version: expected weights in layout {LAYOUT}, got {layout}; "
            "optimize the model it was made from again"
        )
    available, reason = native.available("_ops")
    if not available:
        raise EffnetFastError(f"optimize: an optimized model of native code, which is missing here: {reason}")
    return Program(records, huge_pages(weights.numel()).copy_(weights), channels)


def _durations(times: Tensor) -> list[tuple[int, int]]:
    # High bits: the kind of step; the rest: the clock.
    values = times.tolist()
    mask = (1 << 56) - 1
    return [(b >> 56, (b & mask) - (a & mask)) for a, b in itertools.pairwise(values)]


def _check_network(network: Network) -> None:
    stem = network.stem
    _check_conv("stem", stem)
    if stem.groups != 1:
        raise UnsupportedBlockError(f"stem: expected groups = 1, got {stem.groups}")
    channels = stem.weight.shape[0]
    for i, block in enumerate(network.blocks):
        channels = _check_block(f"block {i}", block, channels)
    if network.head is not None:
        _check_pointwise("head", network.head, channels)
        channels = network.head.weight.shape[0]
    if network.classifier is not None:
        _check_shape("classifier", network.classifier[0], network.classifier[1], channels)


def _check_block(name: str, block: Block, channels: int) -> int:
    expanded = channels
    if block.expand is not None:
        _check_pointwise(f"{name}: expand", block.expand, channels)
        expanded = block.expand.weight.shape[0]
    depthwise = block.depthwise
    _check_conv(f"{name}: depthwise", depthwise)
    shape = tuple(depthwise.weight.shape)
    if depthwise.groups != expanded or shape[:2] != (expanded, 1):
        raise UnsupportedBlockError(
            f"{name}: depthwise: expected weight [{expanded}, 1, k, k], got {list(shape)}"
        )
    if shape[2] not in (3, 5, 7):
        raise UnsupportedBlockError(f"{name}: depthwise: expected a kernel of 3, 5 or 7, got {shape[2]}")
    if depthwise.stride not in (1, 2):
        raise UnsupportedBlockError(f"{name}: depthwise: expected stride 1 or 2, got {depthwise.stride}")
    se = block.squeeze_excite
    if se is not None:
        _check_act(f"{name}: squeeze_excite", se.act)
        _check_act(f"{name}: squeeze_excite", se.gate)
        _check_shape(f"{name}: squeeze_excite", se.w1, se.b1, expanded)
        _check_shape(f"{name}: squeeze_excite", se.w2, se.b2, se.w1.shape[0])
        if se.w2.shape[0] != expanded:
            raise UnsupportedBlockError(
                f"{name}: squeeze_excite: expected {expanded} gates, got {se.w2.shape[0]}"
            )
    _check_pointwise(f"{name}: project", block.project, expanded)
    out = block.project.weight.shape[0]
    if block.residual and (depthwise.stride != 1 or out != channels):
        raise UnsupportedBlockError(
            f"{name}: residual: expected stride 1 and {channels} output channels, got stride "
            f"{depthwise.stride} and {out}"
        )
    return out


def _check_act(name: str, act: str) -> None:
    if act not in NUMBER:
        raise UnsupportedBlockError(f"{name}: expected an activation of {', '.join(NUMBER)}, got {act!r}")


def _check_shape(name: str, weight: Tensor, bias: Tensor, inputs: int) -> None:
    if weight.dim() != 2 or weight.shape[1] != inputs or tuple(bias.shape) != (weight.shape[0],):
        raise UnsupportedBlockError(
            f"{name}: expected weight [O, {inputs}] and bias [O], got {list(weight.shape)} and {list(bias.shape)}"
        )


def _check_conv(name: str, conv: Conv) -> None:
    _check_act(name, conv.act)
    shape = tuple(conv.weight.shape)
    if len(shape) != 4 or shape[2] != shape[3] or tuple(conv.bias.shape) != shape[:1]:
        raise UnsupportedBlockError(
            f"{name}: expected weight [O, I, k, k] and bias [O], got {list(shape)} and {list(conv.bias.shape)}"
        )
    padding: Any = conv.padding
    if padding != "same" and (len(padding) != 4 or min(padding) < 0):
        raise UnsupportedBlockError(f"{name}: expected padding 'same' or 4 numbers >= 0, got {padding!r}")
    if conv.stride < 1:
        raise UnsupportedBlockError(f"{name}: expected stride >= 1, got {conv.stride}")


def _check_pointwise(name: str, conv: Conv, channels: int) -> None:
    _check_conv(name, conv)
    shape = tuple(conv.weight.shape)
    # "same" pads a 1x1 kernel by nothing.
    padded = conv.padding != "same" and any(conv.padding)
    if shape[1:] != (channels, 1, 1) or conv.stride != 1 or conv.groups != 1 or padded:
        raise UnsupportedBlockError(
            f"{name}: expected a 1x1 convolution of {channels} channels with stride 1 and no padding, got weight "
            f"{list(shape)}, stride {conv.stride}, groups {conv.groups}, padding {conv.padding!r}"
        )
