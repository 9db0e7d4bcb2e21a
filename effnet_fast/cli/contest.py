"""The demo's networks, stock and ours, as functions of a batch, and their time for one photo."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import effnet_fast

from ..errors import EffnetFastError
from .output import Output

#: Timing stops here even if rounds remain (on a busy machine), but not before three rounds.
TIMING_SECONDS = 15.0

#: The stock network is timed in both memory formats: which is faster depends on the machine.
STOCK, STOCK_LAST, COMPILED = "stock", "stock, channels_last", "stock, torch.compile"
PATCHED, OPTIMIZED, OPTIMIZED_BF16 = "patch", "optimize, fp32", "optimize, bf16"


class Network(NamedTuple):
    """One way to run the network.

    ``run`` takes fp32 images [N, 3, H, W] in ``memory_format`` and gives logits. ``exact``: fp32 throughout, so that
    its logits are the stock network's but for rounding.
    """

    run: Callable[[Tensor], Tensor]
    ours: bool
    memory_format: torch.memory_format = torch.contiguous_format
    exact: bool = True


class Contest(NamedTuple):
    networks: dict[str, Network]
    #: The model that was patched, for its report.
    patched: nn.Module
    #: name -> why a way is missing here.
    missing: dict[str, str]


def prepare(stock: nn.Module, image: Tensor, compiled: bool, output: Output) -> Contest:
    """Every way to run ``stock`` that this machine has.

    Args:
        stock: in evaluation mode, on the device of ``image``.
        image: [1, 3, H, W], fp32, what the timing will use.
        compiled: also ``torch.compile``, which takes a minute before its first result.
    """
    last = torch.channels_last
    stock_last = copy.deepcopy(stock).to(memory_format=last)
    patched = effnet_fast.patch(copy.deepcopy(stock))
    networks = {STOCK: Network(stock, False), STOCK_LAST: Network(stock_last, False, last)}
    missing = {}
    if compiled:
        networks[COMPILED] = Network(torch.compile(stock_last), False, last)
    networks[PATCHED] = Network(patched, True, last)
    for name, dtype in ((OPTIMIZED, torch.float32), (OPTIMIZED_BF16, torch.bfloat16)):
        try:
            fast = effnet_fast.optimize(stock, tuple(image.shape), dtype=dtype)
            networks[name] = Network(fast, True, last, dtype == torch.float32)
        except EffnetFastError as error:
            missing[name] = str(error)
    with output.progress("preparing", len(networks)) as advance:
        for network in networks.values():
            for _ in range(2):
                network.run(image.contiguous(memory_format=network.memory_format))
            advance()
    return Contest(networks, patched, missing)


def latency(networks: dict[str, Network], image: Tensor, rounds: int, output: Output) -> dict[str, float]:
    """Median milliseconds for one photo, by name; the networks take turns, so that noise hits all alike."""
    images = {
        name: image.contiguous(memory_format=network.memory_format) for name, network in networks.items()
    }
    times: dict[str, list[float]] = {name: [] for name in networks}
    deadline = time.perf_counter() + TIMING_SECONDS
    with output.progress("timing", rounds) as advance:
        for done in range(rounds):
            if done >= 3 and time.perf_counter() > deadline:
                break
            for name, network in networks.items():
                times[name].append(_milliseconds(network.run, images[name]))
            advance()
    return {name: statistics.median(values) for name, values in times.items()}


def _milliseconds(run: Callable[[Tensor], Tensor], image: Tensor) -> float:
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    start = time.perf_counter()
    run(image)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return (time.perf_counter() - start) * 1e3
