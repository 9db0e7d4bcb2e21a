"""Bytes, time floors and throughput ceilings of a network, from its shapes and a device's measured rates.

A kernel's bytes are the tensors it must read and write once (re-reads that a cache serves are free); its floor is
the longest of the times its bytes, its matrix products, its stencil and its activations take at the device's
rates; a network's floor is the sum over its kernels. No launch gaps, no tails: a ceiling, not a forecast.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import EffnetFastError
from .blocks import Network
from .designs import DESIGNS, Kernel


class Device(NamedTuple):
    """Rates per second; ``None``: unlimited, or not known."""

    bandwidth: float  # bytes
    dense_flops: float | None = None
    stencil_flops: float | None = None
    special_ops: float | None = None  # exponentials and reciprocals, two for a SiLU


def kernels(network: Network, design: str = "fused", mode: str = "infer") -> list[Kernel]:
    """The launches of one image.

    Raises:
        EffnetFastError: a design other than ``eager, compiled, fused``, a mode other than ``infer, train``.
    """
    if (design, mode) not in DESIGNS:
        known = ", ".join(" ".join(key) for key in DESIGNS)
        raise EffnetFastError(f"roofline: expected one of {known}, got {(design, mode)!r}")
    return list(DESIGNS[design, mode](network))


def bytes_per_image(launches: list[Kernel], batch: int, element_size: int = 2) -> float:
    """Bytes through memory for one image of a batch."""
    return sum(element_size * (k.elements + k.parameters / batch) for k in launches)


def seconds_per_image(launches: list[Kernel], device: Device, batch: int, element_size: int = 2) -> float:
    """The floor: launches one after the other, each as fast as its tightest limit allows."""
    rates = (device.dense_flops, device.stencil_flops, device.special_ops)
    total = 0.0
    for k in launches:
        times = [element_size * (k.elements + k.parameters / batch) / device.bandwidth]
        work = (2 * k.dense, 2 * k.stencil, 2 * k.silu)
        times += [amount / rate for amount, rate in zip(work, rates, strict=True) if rate]
        total += max(times)
    return total
