"""An op's kernels recorded at an early call with such arguments, and launched again at the next ones.

What a block launches follows from the shapes, strides, dtypes and alignment of its tensors and from its settings. Deciding it
anew (plans, configurations, launchers, a few hundred small Python calls) costs more host time than all launches, so it is
decided once. Memory is allocated anew at each call and nothing of a tensor's contents is kept. What an op does besides
allocating and launching is seen by the dispatcher and repeated as it is; what cannot be repeated (a value read back to the
host, arguments that share memory) makes the body run as usual.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import dispatch, native, tuning
from ..kernels import runtime
from .program import Program
from .record import Recorder, overlap

#: Programs are kept by what is cheap to compare; with more such keys, all are recorded again.
_KEPT = 4096
#: Programs of one key; with more, its are recorded again.
_VARIANTS = 16
#: Devices on which bodies are recorded.
devices = {"cuda"}

#: For each key what tensors must be like, and what is done for them; ``None`` where that cannot be repeated.
_programs: dict[tuple[Any, ...], list[tuple[Any, Program | None]]] = {}
_local = threading.local()


def recorder() -> Recorder | None:
    """What records this thread's launches, if anything does."""
    return getattr(_local, "recorder", None)


def unseen() -> AbstractContextManager[None]:
    """Within the block calls to PyTorch are not recorded: a launcher's own, which it repeats itself."""
    witness = recorder()
    return nullcontext() if witness is None else witness.blind()


def repeat(body: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """``body(*args)``, from a program where there is one.

    Args:
        args: the first is a tensor. Lists hold no tensors, tuples may.
    """
    x = args[0]
    if x.device.type not in devices or not x.numel() or not _is_quiet():
        return body(*args)
    key: list[Any] = [body, x.shape, dispatch.version, dispatch.forced_backends(), tuning.version]
    key.append(_precision(x))
    tensors: list[Tensor] = []
    _flatten(args, key, tensors)
    whole = tuple(key)
    facts_of, same = _facts(x.device.type)
    for facts, program in _programs.get(whole, ()):
        if same(tensors, facts):
            if program is None or _is_elsewhere(x.device):
                return body(*args)
            return program.run(tensors)
    return _record(body, args, tensors, whole, facts_of(tensors))


def _flatten(values: Iterable[Any], key: list[Any], tensors: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            key.append(Tensor)
        elif isinstance(value, list):
            key.append(tuple(value))
        elif isinstance(value, tuple):
            key.append(len(value))
            _flatten(value, key, tensors)
        else:
            key.append(value)


@cache
def _facts(kind: str) -> tuple[Callable[[list[Tensor]], Any], Callable[[list[Tensor], Any], bool]]:
    """What tells everything about tensors that a body may decide by, and what compares them with that."""
    if kind == "cuda" and native.available("_cuda")[0]:
        ops = native.ops()
        return ops.replay_facts.default, ops.replay_same.default

    def facts_of(tensors: list[Tensor]) -> Any:
        return [(t.dtype, t.shape, t.stride(), t.data_ptr() % 16, t.device) for t in tensors]

    return facts_of, lambda tensors, facts: facts_of(tensors) == facts


def _record(
    body: Callable[..., Any], args: tuple[Any, ...], tensors: list[Tensor], key: tuple[Any, ...], facts: Any
) -> Any:
    witness = _local.recorder = Recorder(tensors)
    try:
        with witness:
            results = body(*args)
    finally:
        _local.recorder = None
    program = Program(witness, len(tensors), results) if witness.repeatable else None
    # Arguments that share memory say nothing about the next ones.
    if not witness.repeatable and overlap(tensors):
        return results
    if len(_programs) >= _KEPT:
        _programs.clear()
    variants = _programs.setdefault(key, [])
    if len(variants) >= _VARIANTS:
        variants.clear()
    # A result may have turned out to be one that cannot be made again.
    variants.append((facts, program if witness.repeatable else None))
    return results


def _is_quiet() -> bool:
    """Whether nobody counts, intercepts, tunes or profiles launches."""
    # Not imported before the first launch, because importing it imports Triton.
    launch = sys.modules.get("effnet_fast.kernels.launch")
    return launch is None or launch.may_repeat()


def _precision(x: Tensor) -> bool:
    """What fp32 products are rounded to follows a setting of PyTorch's."""
    return x.dtype == torch.float32 and runtime.tf32_allowed()


def _is_elsewhere(device: torch.device) -> bool:
    """Whether another GPU is current, on which launches would end up."""
    return device.type == "cuda" and device.index != torch._C._cuda_getDevice()
