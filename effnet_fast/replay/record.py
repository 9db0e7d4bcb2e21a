"""What a body allocates, launches and calls, seen while it runs: the steps that a program repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..backend import native

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
    """A tensor, as bytes from the start of its owner's memory; of no elements where ``owner`` is -1."""

    owner: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Launch(NamedTuple):
    """Of a kernel that Triton compiled: what native code needs, where owners count from 1 (Prepared.native)."""

    words: list[int]


class Step(NamedTuple):
    """A function to call, and which of its results (by number; -1: it has one) is the memory of which owner."""

    function: Callable[..., Any]
    args: list[Any]  # with Places for tensors
    made: list[tuple[int, int]]


class Recorder(TorchDispatchMode):
    """Sees what a body does, on top of PyTorch's dispatcher; launchers of Triton kernels tell it of launches."""

    def __init__(self, arguments: list[Tensor]) -> None:
        super().__init__()
        # Owners are numbers of this list. Kept alive to the end: an address then belongs to one tensor.
        self.owners = list(arguments)
        self._ranges = [_range(t) for t in arguments]
        self.allocated: list[
            int
        ] = []  # owners that the body allocated; others are arguments and results of calls
        self.called: set[int] = set()  # owners that a call reads or writes
        self.steps: list[Step | Launch] = []
        self.repeatable = not overlap(arguments)
        self._looks = True

    def place(self, t: Tensor) -> Place:
        layout = (tuple(t.shape), t.stride(), t.dtype)
        owner = self._owner(t) if t.numel() else -1
        if owner < 0:
            self.repeatable &= not t.numel()
            return Place(-1, 0, *layout)
        self.repeatable &= self.owners[owner].dtype == t.dtype
        return Place(owner, t.data_ptr() - self._ranges[owner][0], *layout)

    def launched(self, launch: Any, tensors: Sequence[Tensor | None]) -> None:
        """Called by the launcher of Triton kernels after a launch."""
        words = None
        if _is_native(tensors):
            places = [None if t is None or not t.numel() else self.place(t)[:2] for t in tensors]
            with self.blind():
                words = launch.native(tensors, places)
        self.steps.append(Step(launch.repeat, [self._read(tensors)], []) if words is None else Launch(words))

    @contextmanager
    def blind(self) -> Iterator[None]:
        """Within the block calls are not recorded: those of a launcher, which it repeats itself."""
        self._looks = False
        try:
            yield
        finally:
            self._looks = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        if not self._looks:
            return out
        results = list(enumerate(out)) if isinstance(out, (tuple, list)) else [(-1, out)]
        self.repeatable &= all(t is None or isinstance(t, Tensor) for _, t in results)
        fresh = [(i, t) for i, t in results if isinstance(t, Tensor) and t.numel() and self._owner(t) < 0]
        if func in _ALLOCATIONS:
            self.allocated += [self._keep(t) for _, t in fresh]
        elif fresh or func._schema.is_mutable:
            read = self._read((*args, *named.values()))
            made = [(i, self._keep(t)) for i, t in fresh]
            self.steps.append(Step(_naming(func, tuple(named)), read, made))
        return out

    def _read(self, values: Iterable[Any]) -> list[Any]:
        """What a call takes, with places for tensors."""
        return [self._read_one(value) for value in values]

    def _read_one(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return self._read(value)
        if not isinstance(value, Tensor):
            return value
        place = self.place(value)
        self.called.add(place.owner)
        return place

    def _owner(self, t: Tensor) -> int:
        """In whose memory a tensor begins, or -1."""
        address = t.data_ptr()
        return next((i for i, (first, end) in enumerate(self._ranges) if first <= address < end), -1)

    def _keep(self, t: Tensor) -> int:
        self.owners.append(t)
        self._ranges.append(_range(t))
        return len(self.owners) - 1


def _is_native(tensors: Sequence[Tensor | None]) -> bool:
    """Whether native code launches Triton's kernels for such tensors."""
    return any(t is not None and t.is_cuda for t in tensors) and native.available("_cuda")[0]


def _naming(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """``function`` with the last of its arguments given by name, all of them in one row."""
    if not names:
        return function

    def named(*values: Any) -> Any:
        first = len(values) - len(names)
        return function(*values[:first], **dict(zip(names, values[first:], strict=True)))

    return named


def bytes_of(t: Tensor) -> int:
    """From the first element to the end of the last."""
    if not t.numel():
        return 0
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def _range(t: Tensor) -> tuple[int, int]:
    return t.data_ptr(), t.data_ptr() + bytes_of(t)


def overlap(tensors: Iterable[Tensor]) -> bool:
    """Whether tensors share memory."""
    end = 0
    for first, last in sorted(_range(t) for t in tensors if t.numel()):
        if first < end:
            return True
        end = last
    return False
