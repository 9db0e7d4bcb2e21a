"""What every launcher needs: the launch itself (counted, on the right GPU, prepared), outputs, configurations."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..backend import traffic
from ..backend.recording import recorder, unseen
from ..backend.traffic import record
from ..errors import EffnetFastError
from ..types import Affine, RunningNorm
from . import capture, elementwise_kernels, tuning
from .runtime import INTERPRET, ceil_div

# Said explicitly because the default is about to change (Triton 3.9 warns): a * b + c in one rounding is wanted.
_COMPILER = {"enable_fp_fusion": True}

#: Kernels of which a launch with other scalars or options is remembered; the least recently used one is forgotten.
REMEMBERED = 4096

#: How Triton's types of numbers are packed.
_FORMATS = {"i32": "<i", "u32": "<I", "i64": "<q", "u64": "<Q", "fp32": "<f"}

_interceptors: list[Callable[..., None]] = []


@contextmanager
def intercept(instead: Callable[..., None]) -> Iterator[None]:
    """Within the block, call ``instead(kernel, arguments, meta)`` in place of launching: for compiling offline."""
    _interceptors.append(instead)
    try:
        yield
    finally:
        _interceptors.remove(instead)


class Prepared:
    """A launch of which everything but the tensors is known: ``programs`` programs along grid x, the only long axis.

    Triton's own launch finds out at every call what it compiled (20 us of Python). Here the compiled kernel is kept
    beside what Triton compiles for: the GPU, and of every tensor whether it is there, its dtype and whether it begins
    at a multiple of 16 bytes. Whatever is new goes through Triton's own launch, which also returns what it compiled.
    """

    def __init__(self, kernel: Any, programs: int, scalars: tuple[Any, ...], meta: dict[str, Any]) -> None:
        self.kernel, self.programs, self.scalars, self.meta = kernel, programs, scalars, meta
        self._compiled: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __call__(
        self,
        tensors: Sequence[Tensor | None],
        reads: Iterable[Tensor | None],
        writes: Iterable[Tensor | None],
    ) -> None:
        """Launch on the GPU of the outputs, on its current stream.

        Args:
            tensors: the kernel's leading arguments; the scalars follow them.
            reads, writes: those of the tensors whose bytes count as traffic, see :mod:`effnet_fast.backend.traffic`.
        """
        writes = list(writes)
        record(self.kernel.fn.__name__.removesuffix("_kernel"), reads, writes)
        if _interceptors:
            _interceptors[-1](self.kernel, (*tensors, *self.scalars), self.meta)
            return
        device = next(t for t in writes if t is not None).get_device()
        if device < 0 or INTERPRET or device == torch._C._cuda_getDevice():
            self._launch(device, tensors)
            return
        # Triton and the driver launch on the current GPU.
        with torch.cuda.device(device):
            self._launch(device, tensors)

    def native(
        self, tensors: Sequence[Tensor | None], places: Sequence[tuple[int, int] | None]
    ) -> list[int] | None:
        """The launch as numbers, for native code that makes it (csrc/cuda/compiled.h); the kernel is compiled and loaded.

        Args:
            tensors: as for a call; on the current GPU.
            places: of each of them, the number of the memory that it is in, and the bytes it begins at.

        Returns:
            The kernel's handle, programs, threads and bytes of shared memory, then a pair for each of its parameters:
            the memory's number from 1 and bytes into it, or 0 and a number's bits. ``None`` where only Triton's own launch will do.
        """
        if not is_short():
            return None
        compiled = self.kernel.warmup(
            *(*tensors, *self.scalars), grid=(self.programs,), **self.meta, **_COMPILER
        )
        _ = compiled.run  # asking for it loads the kernel
        metadata = compiled.metadata
        needs_more = (
            *(metadata.global_scratch_size, metadata.profile_scratch_size, metadata.num_ctas != 1),
            *(metadata.launch_cooperative_grid, metadata.launch_pdl),
        )
        if any(needs_more):
            return None
        words = [compiled.function, self.programs, 32 * metadata.num_warps, metadata.shared]
        values = (*places, *self.scalars)
        for index, kind in enumerate(compiled.src.signature.values()):
            if kind == "constexpr":
                continue
            if kind[0] == "*":
                place = values[index]
                words += (0, 0) if place is None else (1 + place[0], place[1])
            else:
                words += (0, int.from_bytes(struct.pack(_FORMATS[kind], values[index]), "little"))
        # Triton's kernels end with the addresses of two scratch memories, which these do not have.
        return [*words, 0, 0, 0, 0]

    def _launch(self, device: int, tensors: Sequence[Tensor | None]) -> None:
        self._launch_shortly(device, tensors)
        witness = recorder()
        if witness is not None:
            witness.launched(self, tensors)

    def repeat(self, tensors: Sequence[Tensor | None]) -> None:
        """The launch alone, for :mod:`effnet_fast.replay`."""
        self._launch_shortly(next(t for t in tensors if t is not None).get_device(), tensors)

    def _launch_shortly(self, device: int, tensors: Sequence[Tensor | None]) -> None:
        if device < 0 or not is_short():
            self._launch_by_triton(tensors)
            return
        key: list[Any] = [device]
        addresses = 0
        for t in tensors:
            if t is None:
                key.append(None)
            else:
                key.append(t.dtype)
                addresses |= t.data_ptr()
        if addresses % 16:
            key += [t is not None and t.data_ptr() % 16 != 0 for t in tensors]
        whole = tuple(key)
        found = self._compiled.get(whole)
        if found is None:
            compiled = self._launch_by_triton(tensors)
            # Triton's launchers take every parameter in order and skip the constants it compiled in.
            constants = (None,) * (len(self.kernel.arg_names) - len(tensors) - len(self.scalars))
            start = (compiled.run, compiled.function, compiled.packed_metadata)
            self._compiled[whole] = (*start, (*self.scalars, *constants))
            return
        run, function, metadata, rest = found
        stream = torch._C._cuda_getCurrentRawStream(device)
        run(self.programs, 1, 1, stream, function, metadata, None, None, None, *tensors, *rest)

    def _launch_by_triton(self, tensors: Sequence[Tensor | None]) -> Any:
        arguments, options, grid = (*tensors, *self.scalars), {**self.meta, **_COMPILER}, (self.programs,)
        if torch.cuda.is_initialized() and not INTERPRET and capture.capturing():
            with capture.loading():
                # Asking for what launches it loads the kernel.
                _ = self.kernel.warmup(*arguments, grid=grid, **options).run
        with unseen():
            return self.kernel[grid](*arguments, **options)


def is_short() -> bool:
    """Whether nobody listens to Triton's launches or asks for other code than the usual."""
    if _runtime is None:
        return False
    if _runtime.debug or _compilation.instrumentation_mode or _runtime.add_stages_inspection_hook is not None:
        return False
    # Profilers: a chain of hooks, empty by default; None or a function is possible too.
    for hook in (_runtime.launch_enter_hook, _runtime.launch_exit_hook):
        if getattr(hook, "calls", hook):
            return False
    return True


def may_repeat() -> bool:
    """Whether launches may be made again without their launchers; Triton's own, where none are short, may."""
    return not is_watched() and (_runtime is None or is_short())


def is_watched() -> bool:
    """Whether someone counts, intercepts or watches launches one by one."""
    return bool(_interceptors or traffic.counting() or tuning.watched())


def _knobs() -> tuple[Any, Any]:
    """Triton's settings, of run time and of compilation; none where launches stay Triton's own."""
    # AMD's compiler specialises on more than what Prepared looks at.
    if INTERPRET or torch.version.hip is not None:
        return None, None
    from triton import knobs

    return knobs.runtime, knobs.compilation


_runtime, _compilation = _knobs()


@functools.lru_cache(REMEMBERED)
def _prepare(
    kernel: Any, programs: int, scalars: tuple[Any, ...], meta: tuple[tuple[str, Any], ...]
) -> Prepared:
    return Prepared(kernel, programs, scalars, dict(meta))


def launch(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor | None],
    scalars: tuple[Any, ...],
    *,
    reads: Iterable[Tensor | None],
    writes: Iterable[Tensor | None],
    **meta: Any,
) -> None:
    """Run ``programs`` programs of a jit kernel, as :class:`Prepared` does; for launchers that do not keep one."""
    _prepare(kernel, programs, scalars, tuple(meta.items()))(tensors, reads, writes)


def epilogue_vectors(affine: Affine | RunningNorm | None) -> tuple[tuple[Tensor | None, ...], float]:
    """``scale, shift, mean, var`` and eps as the kernels take them: of an affine, a BatchNorm or nothing."""
    if isinstance(affine, RunningNorm):
        return affine[:4], affine.eps
    return (*(affine or (None, None)), None, None), 0.0


def config(kernel: str, x: Tensor, size: int = 0) -> dict[str, int]:
    """The tile configuration for tensors like ``x``; see :func:`effnet_fast.kernels.tuning.find`."""
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


def parts(pooled: Tensor) -> Tensor:
    """What a launch made of [N, splits, C] partial means: [N, C] where nothing was split."""
    return pooled.squeeze(1) if pooled.shape[1] == 1 else pooled


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
        (partial, total),
        (partials, inner, tiles),
        reads=[partial],
        writes=[total],
        **meta,
    )
    return total
