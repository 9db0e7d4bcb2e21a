"""An op's kernels recorded at its first call with such arguments, and launched again at the next ones.

What a block launches follows from the shapes, strides, dtypes and alignment of its tensors and from its settings. Deciding it
anew (plans, configurations, launchers, a few hundred small Python calls) costs more host time than all launches, so it is
decided once: a :class:`Program` holds the steps, with every address as "so many bytes into that argument or allocation".
Memory is allocated anew at each call and nothing of a tensor's contents is kept. What an op does besides allocating and
launching is seen by the dispatcher and repeated as it is; what cannot be repeated (a value read back to the host, arguments
that share memory) makes the body run as usual.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import dispatch, tuning
from .kernels import runtime

#: Programs kept; with more, all are recorded again.
_KEPT = 4096
#: Bytes; smaller buffers that no result and no PyTorch op needs share one allocation, each at a multiple of _ALIGNMENT.
_SMALL = 1 << 20
_ALIGNMENT = 512

_aten = torch.ops.aten
_ALLOCATIONS = frozenset(
    (
        _aten.empty.memory_format,
        _aten.empty_strided.default,
        _aten.empty_like.default,
        _aten.new_empty.default,
        _aten.new_empty_strided.default,
    )
)


class Place(NamedTuple):
    """A tensor as bytes from the start of an argument or allocation; of no elements where ``owner`` is -1."""

    owner: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Recorder(TorchDispatchMode):
    """Sees what a body allocates, launches and calls, and turns it into the steps of a :class:`Program`."""

    def __init__(self, arguments: list[Tensor]) -> None:
        super().__init__()
        # Kept alive to the end: an address then belongs to one tensor.
        self._known = list(arguments)
        self._ranges = [_range(t) for t in arguments]
        self._arguments = len(arguments)
        self.made: dict[int, Place] = {}  # allocations of the program's own; the others are results of calls
        self.steps: list[tuple[Any, ...]] = []
        self.called: set[int] = set()  # allocations that a PyTorch op reads or writes
        self.repeatable = not _overlap(self._ranges)
        self.looks = True

    def place(self, t: Tensor) -> Place:
        rest = (tuple(t.shape), t.stride(), t.dtype)
        if not t.numel():
            return Place(-1, 0, *rest)
        address = t.data_ptr()
        for index, (first, end) in enumerate(self._ranges):
            if first <= address < end:
                self.repeatable &= self._known[index].dtype == t.dtype
                return Place(index, address - first, *rest)
        self.repeatable = False
        return Place(-1, 0, *rest)

    def launched(
        self, launch: Any, tensors: tuple[Tensor | None, ...], compiled: tuple[Any, ...] | None
    ) -> None:
        """Called by the launcher of Triton kernels; ``compiled`` is what a launch past Triton takes."""
        places = [None if t is None else self.place(t) for t in tensors]
        if compiled is None:
            self.called.update(p.owner for p in places if p is not None)
            self.steps.append(("call", launch.repeat, (places,), {}, ()))
        else:
            self.steps.append(("launch", launch.programs, compiled, places))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.looks:
            return out
        results = out if isinstance(out, (tuple, list)) else (out,)
        self.repeatable &= all(t is None or isinstance(t, Tensor) for t in results)
        fresh = [
            i for i, t in enumerate(results) if isinstance(t, Tensor) and t.numel() and not self._is_known(t)
        ]
        if func in _ALLOCATIONS:
            for i in fresh:
                made = Place(-1, 0, tuple(results[i].shape), results[i].stride(), results[i].dtype)
                self.made[self._keep(results[i])] = made
        elif fresh or func._schema.is_mutable:
            read = [_map(value, self.place) for value in (list(args), kwargs or {})]
            _map(read, lambda p: self.called.add(p.owner), Place)
            self.steps.append(("call", func, *read, tuple((i, self._keep(results[i])) for i in fresh)))
        return out

    def _is_known(self, t: Tensor) -> bool:
        address = t.data_ptr()
        return any(first <= address < end for first, end in self._ranges)

    def _keep(self, t: Tensor) -> int:
        self._known.append(t)
        self._ranges.append(_range(t))
        return len(self._known) - 1


class Program:
    """The steps of a body, for arguments like those it was recorded with."""

    def __init__(self, recorder: Recorder, results: Any) -> None:
        self._size = len(recorder._known)
        self._steps = recorder.steps
        self._single = isinstance(results, Tensor)
        self._results = [recorder.place(t) for t in ((results,) if self._single else results)]
        own = recorder.called | {place.owner for place in self._results}
        self._own: list[tuple[int, Place]] = []
        self._shared: list[tuple[int, int]] = []
        self._bytes = 0
        for index, made in recorder.made.items():
            size = _span(made.shape, made.stride) * made.dtype.itemsize
            if index in own or size > _SMALL:
                self._own.append((index, made))
            else:
                self._shared.append((index, self._bytes))
                self._bytes += -(-size // _ALIGNMENT) * _ALIGNMENT

    def run(self, arguments: list[Tensor], device: torch.device) -> Any:
        """What the body returns, from memory of its own."""
        tensors: list[Any] = arguments + [None] * (self._size - len(arguments))
        start = [0] * self._size
        for i, t in enumerate(arguments):
            start[i] = t.data_ptr()
        for index, made in self._own:
            t = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device=device)
            tensors[index], start[index] = t, t.data_ptr()
        if self._bytes:
            shared = torch.empty(self._bytes, dtype=torch.uint8, device=device)
            base = shared.data_ptr()
            for index, offset in self._shared:
                start[index] = base + offset
        stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0

        def tensor(place: Place) -> Tensor:
            if place.owner < 0:
                return torch.empty_strided(place.shape, place.stride, dtype=place.dtype, device=device)
            return _tensor(tensors[place.owner], place)

        for kind, *step in self._steps:
            if kind == "launch":
                programs, (run, function, metadata, rest), places = step
                pointers = [None if p is None else start[p.owner] + p.offset for p in places]
                run(programs, 1, 1, stream, function, metadata, None, None, None, *pointers, *rest)
                continue
            function, args, kwargs, made = step
            out = function(*_map(args, tensor, Place), **_map(kwargs, tensor, Place))
            for number, index in made:
                t = out if isinstance(out, Tensor) else out[number]
                tensors[index], start[index] = t, t.data_ptr()
        results = [tensor(place) for place in self._results]
        return results[0] if self._single else tuple(results)


def _tensor(whole: Tensor, place: Place) -> Tensor:
    if place.offset == 0 and place.shape == whole.shape and place.stride == whole.stride():
        return whole
    offset = whole.storage_offset() + place.offset // place.dtype.itemsize
    return whole.as_strided(place.shape, place.stride, offset)


def _map(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [_map(v, change, kind) for v in value]
    if isinstance(value, dict):
        return {name: _map(v, change, kind) for name, v in value.items()}
    return value


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if 0 not in shape else 0


def _range(t: Tensor) -> tuple[int, int]:
    first = t.data_ptr()
    return first, first + _span(tuple(t.shape), t.stride()) * t.element_size()


def _overlap(ranges: list[tuple[int, int]]) -> bool:
    last = 0
    for first, end in sorted(r for r in ranges if r[0] < r[1]):
        if first < last:
            return True
        last = end
    return False


_programs: dict[tuple[Any, ...], Program | None] = {}
_local = threading.local()
#: Devices on which bodies are recorded.
devices = {"cuda"}


def recorder() -> Recorder | None:
    """What records this thread's launches, if anything does."""
    return getattr(_local, "recorder", None)


@contextmanager
def unseen() -> Iterator[None]:
    """Within the block calls to PyTorch are not recorded: a launcher's own, which it repeats itself."""
    witness = recorder()
    if witness is None:
        yield
        return
    witness.looks = False
    try:
        yield
    finally:
        witness.looks = True


def _describe(values: Iterable[Any], key: list[Any], tensors: list[Tensor]) -> None:
    """Everything about arguments that a body may decide by. Called at every step, hence as flat as it is."""
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            key += (value.dtype, value.shape, value.stride(), value.data_ptr() % 16, value.get_device())
        elif isinstance(value, list):
            key.append(tuple(value))
        elif isinstance(value, tuple):
            key.append(len(value))
            _describe(value, key, tensors)
        else:
            key.append(value)


def repeat(body: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """``body(*args)``, from a program where there is one.

    Args:
        args: the first is a tensor. Lists hold no tensors, tuples may.
    """
    device = args[0].device
    if device.type not in devices or not args[0].numel() or not _is_quiet():
        return body(*args)
    key: list[Any] = [body, dispatch.version, dispatch.forced_backends(), tuning.version, _precision(args[0])]
    tensors: list[Tensor] = []
    _describe(args, key, tensors)
    whole = tuple(key)
    if whole not in _programs:
        return _record(body, args, tensors, whole)
    program = _programs[whole]
    if program is None or _elsewhere(device):
        return body(*args)
    return program.run(tensors, device)


def _record(
    body: Callable[..., Any], args: tuple[Any, ...], tensors: list[Tensor], key: tuple[Any, ...]
) -> Any:
    _local.recorder = Recorder(tensors)
    try:
        with _local.recorder:
            results = body(*args)
        program = Program(_local.recorder, results)
        repeatable = _local.recorder.repeatable
    finally:
        _local.recorder = None
    if len(_programs) >= _KEPT:
        _programs.clear()
    # Arguments that share memory say nothing about the next ones.
    if repeatable or not _overlap([_range(t) for t in tensors]):
        _programs[key] = program if repeatable else None
    return results


def _is_quiet() -> bool:
    """Whether nobody counts, intercepts, tunes or profiles launches."""
    # Not imported before the first launch, because importing it imports Triton.
    launch = sys.modules.get("effnet_fast.kernels.launch")
    return launch is None or launch.may_repeat()


def _precision(x: Tensor) -> bool:
    """What fp32 products are rounded to follows a setting of PyTorch's."""
    return x.dtype == torch.float32 and runtime.tf32_allowed()


def _elsewhere(device: torch.device) -> bool:
    """Whether another GPU is current, on which launches would end up."""
    return device.type == "cuda" and device.index != torch._C._cuda_getDevice()
