"""The CPU engine: a folded network packed once, then run by one native call (``csrc/cpu/engine``)."""

from __future__ import annotations

import itertools
import re
import threading
from typing import Any

import torch
from torch import Tensor

from ...errors import EffnetFastError, UnsupportedBlockError
from .. import native
from ..network import Conv, Network
from .entry_points import NUMBER

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
    try:
        program, weights = native.ops().network_compile.default(*_describe(network), dtype == torch.bfloat16)
    except RuntimeError as error:
        refusal = _refusal(error)
        # Anything else, memory for one, is no word about the network.
        if refusal is None:
            raise
        raise UnsupportedBlockError(refusal) from None
    return Program(program, weights, network.stem.weight.shape[1])


def _describe(network: Network) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Weights, biases and the numbers that ``csrc/cpu/ops/compile.cpp`` reads beside them."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    numbers = [len(network.blocks), int(network.pool)]

    def layer(name: str, conv: Conv) -> None:
        if conv.act not in NUMBER:
            raise UnsupportedBlockError(
                f"{name}: expected an activation of {', '.join(NUMBER)}, got {conv.act!r}"
            )
        padding: Any = (0, 0, 0, 0) if conv.padding == "same" else conv.padding
        if len(padding) != 4:
            raise UnsupportedBlockError(f"{name}: expected padding 'same' or 4 numbers, got {padding!r}")
        weights.append(conv.weight.detach())
        biases.append(conv.bias.detach())
        same = int(conv.padding == "same")
        numbers.extend((conv.stride, conv.groups, same, *padding, NUMBER[conv.act]))

    def optional(name: str, conv: Conv | None) -> None:
        numbers.append(int(conv is not None))
        if conv is not None:
            layer(name, conv)

    layer("stem", network.stem)
    for i, block in enumerate(network.blocks):
        se = block.squeeze_excite
        optional(f"block {i}: expand", block.expand)
        layer(f"block {i}: depthwise", block.depthwise)
        optional(f"block {i}: squeeze_excite", None if se is None else Conv(se.w1, se.b1, act=se.act))
        optional(f"block {i}: squeeze_excite", None if se is None else Conv(se.w2, se.b2, act=se.gate))
        layer(f"block {i}: project", block.project)
        numbers.append(int(block.residual))
    optional("head", network.head)
    classifier = network.classifier if network.pool and network.head is not None else None
    optional("classifier", None if classifier is None else Conv(*classifier))
    return weights, biases, numbers


class Program:
    """A packed network. Threads may call :meth:`run` at the same time; each call has a workspace of its own."""

    backend = "cpu"

    def __init__(self, records: Tensor, weights: Tensor, channels: int) -> None:
        self._records, self._weights, self._channels = records, weights, channels
        self._plan = native.ops().network_plan.default
        self._run = native.ops().network_run.default
        self._plans: dict[tuple[int, int, int, int], list[int]] = {}
        self._workspaces: list[Tensor] = []
        self._lock = threading.Lock()

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
                refusal = _refusal(error)
                if refusal is None:
                    raise
                raise EffnetFastError(f"optimized model: {refusal}") from None
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
        return _huge_pages(size)


def _refusal(error: RuntimeError) -> str | None:
    """What a native op said about its arguments, without the op; ``None`` if the error is of another kind."""
    found = re.search(r"effnet_fast\.\w+: (.*)", str(error))
    return None if found is None else found[1]


def _huge_pages(size: int) -> Tensor:
    """Bytes in large pages where the system has them, not initialised."""
    memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    native.ops().prefer_huge_pages(memory)
    return memory


def _durations(times: Tensor) -> list[tuple[int, int]]:
    # High bits: the kind of step; the rest: the clock.
    values = times.tolist()
    mask = (1 << 56) - 1
    return [(b >> 56, (b & mask) - (a & mask)) for a, b in itertools.pairwise(values)]
