"""Jobs on recorded programs: what their native launches pass, beside what Triton was given when they were recorded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from effnet_fast.kernels.launch import Prepared
from torch import Tensor

from effnet_fast.replay import program

from . import blocks

#: csrc/cuda/replay.cpp and compiled.h.
_ROW = struct.Struct("<qq")
_HEAD = struct.Struct("<QIIIi")
_MOST_ARGUMENTS = 48
_ARGUMENT = struct.Struct("<qq")

#: Addresses of a launch's tensors, in order.
Launch = tuple[int, ...]


def _decoded(prepared: Tensor, tensors: tuple[Tensor, ...]) -> list[Launch]:
    memory = bytes(prepared.tolist())
    kernels, count = _ROW.unpack_from(memory)
    assert count == len(tensors)
    size = _HEAD.size + _MOST_ARGUMENTS * _ARGUMENT.size
    launches = []
    for first in range(_ROW.size, _ROW.size + kernels * size, size):
        *_, arguments = _HEAD.unpack_from(memory, first)
        places = [
            _ARGUMENT.unpack_from(memory, first + _HEAD.size + i * _ARGUMENT.size) for i in range(arguments)
        ]
        launches.append(tuple(tensors[t - 1].data_ptr() + offset for t, offset in places if t))
    return launches


def addresses() -> list[tuple[list[Launch], list[Launch]]]:
    """Of the forward's and the backward's program: what Triton was given when it was recorded, and native code at the
    next call."""
    recorded: list[Launch] = []
    repeated: list[Launch] = []
    told: list[tuple[list[Launch], list[Launch]]] = []
    launch, launch_all, run, make = (
        *(Prepared._launch_shortly, program._launch),
        *(program.Program.run, program.Program.__init__),
    )

    def watched(self: Prepared, device: int, tensors: Any) -> None:
        recorded.append(tuple(t.data_ptr() for t in tensors if t is not None))
        launch(self, device, tensors)

    def watched_row(function: Callable[..., None], prepared: Tensor, *tensors: Tensor) -> None:
        repeated.extend(_decoded(prepared, tensors))
        launch_all(function, prepared, *tensors)

    made: dict[int, list[Launch]] = {}

    def making(self: program.Program, recorder: Any, arguments: int, results: Any) -> None:
        count = sum(isinstance(step, program.Launch) for step in recorder.steps)
        made[id(self)] = recorded[len(recorded) - count :]
        make(self, recorder, arguments, results)

    def running(self: program.Program, arguments: list[Tensor]) -> Any:
        repeated.clear()
        results = run(self, arguments)
        told.append((made[id(self)], list(repeated)))
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prepared, "_launch_shortly", watched)
        patch.setattr(program, "_launch", watched_row)
        patch.setattr(program.Program, "__init__", making)
        patch.setattr(program.Program, "run", running)
        # A size that no other job uses.
        call = blocks.call_of("training", "autocast", size=18)
        for _ in range(3):
            call()
    return told
