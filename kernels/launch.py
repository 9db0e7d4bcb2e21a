"""What every launcher needs: the launch itself (counted, on the right GPU), outputs, configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import tuning
from ..errors import EffnetFastError
from ..traffic import record
from . import elementwise_kernels
from .runtime import ceil_div, device_guard

# Said explicitly because the default is about to change (Triton 3.9 warns): a * b + c in one rounding is wanted.
_COMPILER = {"enable_fp_fusion": True}

_interceptors: list[Callable[..., None]] = []


@contextmanager
def intercept(instead: Callable[..., None]) -> Iterator[None]:
    """Within the block, call ``instead(kernel, arguments, meta)`` in place of launching: for compiling offline."""
    _interceptors.append(instead)
    try:
        yield
    finally:
        _interceptors.remove(instead)


def launch(
    kernel: Any,
    programs: int,
    *arguments: Any,
    reads: Iterable[Tensor | None],
    writes: Iterable[Tensor | None],
    **meta: Any,
) -> None:
    """Run ``programs`` programs of a jit kernel on the GPU of its outputs, along grid x, the only long axis."""
    writes = list(writes)
    record(kernel.fn.__name__.removesuffix("_kernel"), reads, writes)
    if _interceptors:
        _interceptors[-1](kernel, arguments, meta)
        return
    with device_guard(next(t for t in writes if t is not None)):
        kernel[(programs,)](*arguments, **meta, **_COMPILER)


def config(kernel: str, x: Tensor, size: int = 0) -> dict[str, int]:
    """The tile configuration for tensors like ``x``; see :func:`effnet_fast.tuning.find`."""
    found = tuning.find(kernel, x.dtype, x.device, size)
    if found is None:
        raise EffnetFastError(f"triton {kernel}: expected a size that fits a tile, got {size}")
    return found


def empty_image(n: int, channels: int, height: int, width: int, like: Tensor) -> Tensor:
    """[n, channels, height, width] in channels_last memory, dtype and device of ``like``."""
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def vector_like(x: Tensor, *shape: int) -> Tensor:
    """Uninitialized fp32 memory on the device of ``x``."""
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def mean_of_nothing(x: Tensor, *shape: int) -> Tensor:
    """What pooling images without pixels gives, fp32: NaN, as :func:`torch.mean` has it; no images, no elements."""
    return torch.full(shape, float("nan"), dtype=torch.float32, device=x.device)


def sum_partials(partial: Tensor) -> Tensor:
    """[outer, partials, inner] -> [outer, inner], summed in a fixed order."""
    outer, partials, inner = partial.shape
    if partials == 1:
        return partial.view(outer, inner)
    total = vector_like(partial, outer, inner)
    meta = config("sum_partials", partial)
    tiles = ceil_div(inner, meta["BLOCK_N"])
    launch(
        elementwise_kernels.sum_partials_kernel,
        outer * tiles,
        *(partial, total, partials, inner, tiles),
        reads=[partial],
        writes=[total],
        **meta,
    )
    return total
