"""Steps that were recorded, made ready to be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..backend import native
from .record import Launch, Place, Recorder, bytes_of

#: Bytes; smaller buffers that no result and no call needs share one allocation, each at a multiple of _ALIGNMENT.
_SMALL = 1 << 20
_ALIGNMENT = 512
#: The owner of that allocation.
_SHARED = -2
#: Numbers before a kernel's arguments: handle, programs, threads, shared memory.
_HEAD = 4


class Program:
    """What a body does, for arguments like those it was recorded with.

    One table has an entry for everything: the arguments, then constants, what steps make, and views of these. A step is a
    function, the entries that it takes, and the entries of what it makes.
    """

    def __init__(self, recorder: Recorder, arguments: int, results: Tensor | Sequence[Tensor]) -> None:
        single = isinstance(results, Tensor)
        places = list(map(recorder.place, [results] if isinstance(results, Tensor) else results))
        self._like = torch.empty(0, dtype=torch.float32, device=recorder.owners[0].device)
        self._table: list[Any] = [None] * arguments
        self._steps: list[tuple[Callable[..., Any], Any, tuple[tuple[int, int], ...]]] = []
        self._layouts = [(tuple(t.shape), t.stride(), t.dtype) for t in recorder.owners]
        #: Of owners, by number, and of views.
        self._entries: dict[Any, int] = {owner: owner for owner in range(arguments)}
        self._shared: dict[int, int] = {}
        self._allocate(recorder, recorder.called | {place.owner for place in places})
        row: list[Launch] = []
        for step in recorder.steps:
            if isinstance(step, Launch):
                row.append(step)
                continue
            self._launch(row)
            self._add(step.function, [self._entry(value) for value in step.args], step.made)
        self._launch(row)
        self._results = (itemgetter if single else _taking)(*[self._entry(place) for place in places])

    def run(self, arguments: list[Tensor]) -> Any:
        """What the body returns, from memory of its own."""
        table = self._table.copy()
        table[: len(arguments)] = arguments
        for function, taking, made in self._steps:
            out = function(*taking(table))
            for number, entry in made:
                table[entry] = out if number < 0 else out[number]
        return self._results(table)

    def _new(self, value: Any = None) -> int:
        self._table.append(value)
        return len(self._table) - 1

    def _add(
        self, function: Callable[..., Any], entries: Sequence[int], made: Iterable[tuple[int, Any]]
    ) -> None:
        """One more step; ``made`` are numbers of results and what they are: an owner's memory, or a view."""
        kept = []
        for number, name in made:
            self._entries[name] = self._new()
            kept.append((number, self._entries[name]))
        self._steps.append((function, _taking(*entries), tuple(kept)))

    def _allocate(self, recorder: Recorder, kept: set[int]) -> None:
        """The body's allocations: a tensor each for the ``kept`` owners and the large, one for all others."""
        size = 0
        for owner in recorder.allocated:
            needed = bytes_of(recorder.owners[owner])
            if owner in kept or needed > _SMALL:
                self._add(self._empty(*self._layouts[owner]), (), [(-1, owner)])
            else:
                self._shared[owner] = size
                size += -(-needed // _ALIGNMENT) * _ALIGNMENT
        if size:
            self._add(self._empty((size,), (1,), torch.uint8), (), [(-1, _SHARED)])

    def _empty(
        self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ) -> Callable[[], Tensor]:
        return partial(torch.empty_strided, shape, stride, dtype=dtype, device=self._like.device)

    def _launch(self, row: list[Launch]) -> None:
        """Launches in a row, as one native call; the row is empty then."""
        if not row:
            return
        numbers: dict[int, int] = {}
        words: list[int] = []
        for (launch,) in row:
            words += (len(launch), *launch[:_HEAD])
            for owner, value in zip(launch[_HEAD::2], launch[_HEAD + 1 :: 2], strict=True):
                if owner:
                    owner -= 1
                    if owner in self._shared:
                        owner, value = _SHARED, self._shared[owner] + value
                    owner = 1 + numbers.setdefault(owner, len(numbers))
                words += (owner, value)
        ops = native.ops()
        prepared = ops.replay_prepare(self._like, len(numbers), words)
        launch_all = partial(_launch, ops.replay_launch.default, prepared)
        self._add(launch_all, [self._entries[owner] for owner in numbers], ())
        row.clear()

    def _entry(self, value: Any) -> int:
        """Where the steps to come find what was recorded."""
        if isinstance(value, Place):
            return self._tensor(value)
        if isinstance(value, list) and any(isinstance(v, Place) for v in value):
            name = object()
            self._add(_list, [self._entry(v) for v in value], [(-1, name)])
            return self._entries[name]
        return self._new(value)

    def _tensor(self, place: Place) -> int:
        owner, offset, shape, stride, dtype = place
        if owner < 0:
            name = object()
            self._add(self._empty(shape, stride, dtype), (), [(-1, name)])
            return self._entries[name]
        if offset == 0 and (shape, stride, dtype) == self._layouts[owner]:
            return self._entries[owner]
        if place not in self._entries:
            constants = [self._new(v) for v in (shape, stride, offset // dtype.itemsize)]
            self._add(_view, [self._entries[owner], *constants], [(-1, place)])
        return self._entries[place]


def _taking(*entries: int) -> Callable[[list[Any]], Sequence[Any]]:
    """What reads these entries of a table."""
    if len(entries) > 1:
        return itemgetter(*entries)
    return itemgetter(slice(entries[0], entries[0] + 1) if entries else slice(0))


def _launch(launch: Callable[..., None], prepared: Tensor, *tensors: Tensor) -> None:
    launch(tensors, prepared)


def _list(*values: Any) -> list[Any]:
    return list(values)


def _view(whole: Tensor, shape: tuple[int, ...], stride: tuple[int, ...], first: int) -> Tensor:
    return whole.as_strided(shape, stride, whole.storage_offset() + first)
