"""Which backend runs an op: one table, a reason for every refusal, and the user's say in it.

Backends are tried in the order of :data:`ORDER`; the first whose ``can_run`` agrees is used. A choice made by
the user (:func:`use_backend` or ``EFFNET_FAST_BACKEND``) replaces the order and raises the reason if none of
the chosen backends can run.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import BackendError

logger = logging.getLogger("effnet_fast")

ENVIRONMENT_VARIABLE = "EFFNET_FAST_BACKEND"
# The dictionary behind os.environ, which itself raises and catches a KeyError for what is not set: asked at every call of
# every block that is 10 us of the few that a block takes to decide.
_environment: Any = getattr(os.environ, "_data", os.environ)
_variable: Any = ENVIRONMENT_VARIABLE
if _environment is not os.environ:
    _variable = os.environ.encodekey(ENVIRONMENT_VARIABLE)  # type: ignore[attr-defined]

#: backend -> (module of ``can_run``, module whose functions have the reference's names and signatures).
MODULES = {
    "cuda": ("effnet_fast.backend.cuda", "effnet_fast.backend.cuda"),
    "triton": ("effnet_fast.kernels.runtime", "effnet_fast.kernels.launchers"),
    "cpu": ("effnet_fast.backend.cpu", "effnet_fast.backend.cpu"),
    "reference": ("effnet_fast.dispatch", "effnet_fast.backend.reference"),
}

_STENCIL = ("cuda", "triton", "cpu", "reference")
_DENSE = ("triton", "cpu", "reference")

#: op -> backends in the order they are tried.
ORDER: dict[str, tuple[str, ...]] = {
    "depthwise": _STENCIL,
    "depthwise_backward": _STENCIL,
    "squeeze_excite": _STENCIL,
    "squeeze_excite_backward": _STENCIL,
    "pointwise": _DENSE,
    "pointwise_backward": _DENSE,
    "batch_norm_act_grad": _DENSE,
    "batch_norm_fold": _DENSE,
    "batch_norm_finalize": _DENSE,
    "batch_norm_reduce": _DENSE,
    "batch_norm_backward_finalize": _DENSE,
    "channel_stats": _DENSE,
    "gate_batch_norm_finalize": _DENSE,
    "gate_batch_norm_sums": _DENSE,
    "merge_weight_grads": ("triton", "reference"),
    "affine_pool": _DENSE,
    "affine_residual": _DENSE,
}

#: What some backends have as one call: a block in inference, which the others run op by op, and a folded network.
WHOLE: dict[str, tuple[str, ...]] = {
    "mbconv_inference": ("cuda", "cpu"),
    "compile_network": ("cpu", "reference"),
}

#: The ops a user's choice must cover. The others are bookkeeping around them: a chosen backend that lacks
#: one (CUDA C++ has only the stencils) leaves it to the usual order.
PRIMITIVES = frozenset(op for op in ORDER if op.startswith(("depthwise", "pointwise", "squeeze_excite")))


class Choice(NamedTuple):
    """The outcome for one op: the backend, its function, and why each earlier backend was passed over."""

    backend: str
    function: Callable[..., Any]
    passed_over: tuple[tuple[str, str], ...]


#: Changes with every :func:`forget_choices`, for those who keep what followed from a choice.
version = 0

_forced: ContextVar[tuple[str, ...]] = ContextVar("effnet_fast_backend", default=())
#: op, facts -> function: what :func:`answering` puts in the table's place.
Answer = Callable[..., Callable[..., Any]]
_answer: ContextVar[Answer | None] = ContextVar("effnet_fast_answer", default=None)
_choices: dict[tuple[Any, ...], Choice] = {}
#: Of :func:`choose_for_modules`: what modules run by themselves. Asking for the op itself is another question.
_left: dict[tuple[Any, ...], Choice] = {}


def can_run(op: str, device: torch.device, dtype: torch.dtype, **facts: Any) -> tuple[bool, str]:
    """The reference backend's answer: everything in :data:`ORDER`, any device, any floating dtype."""
    return dtype.is_floating_point, "" if dtype.is_floating_point else f"{dtype} is not a floating dtype"


def _parse(names: tuple[str, ...], origin: str) -> tuple[str, ...]:
    flat = tuple(part.strip() for name in names for part in name.split(",") if part.strip())
    unknown = [name for name in flat if name not in MODULES and name != "auto"]
    if unknown:
        raise BackendError(f"{origin}: unknown backend {unknown[0]!r}; known: auto, {', '.join(MODULES)}")
    return () if "auto" in flat else flat


def forced_backends() -> tuple[str, ...]:
    """The backends the user chose, in order; empty when the choice is automatic."""
    chosen = _forced.get()
    if chosen:
        return chosen
    if _variable not in _environment:
        return ()
    value = os.environ.get(ENVIRONMENT_VARIABLE)
    return _parse((value,), ENVIRONMENT_VARIABLE) if value else ()


def chosen_by_user() -> bool:
    """Whether the user chose backends, so that a refusal must be an error and not a fallback."""
    return forced_backends() not in ((), ("auto",))


@contextmanager
def use_backend(*names: str) -> Iterator[None]:
    """Within the block, run ops on these backends only, tried in the order given.

    Args:
        names: one or more of ``cuda``, ``triton``, ``cpu``, ``reference``; ``auto`` restores the automatic choice.

    Raises:
        BackendError: unknown name; or, when an op runs, none of the backends can run it (with each one's reason).
    """
    if not names:
        raise BackendError("use_backend: expected at least one backend name, got none")
    with forcing(_parse(names, "use_backend") or ("auto",)):
        yield


@contextmanager
def forcing(names: tuple[str, ...]) -> Iterator[None]:
    """:func:`use_backend` for what :func:`forced_backends` returned, in another thread perhaps."""
    token = _forced.set(names)
    try:
        yield
    finally:
        _forced.reset(token)


def _ask(
    backend: str, op: str, device: torch.device, dtype: torch.dtype, facts: dict[str, Any]
) -> tuple[bool, str]:
    if backend not in (ORDER.get(op) or WHOLE[op]):
        return False, f"the {backend} backend has no {op}"
    try:
        module = importlib.import_module(MODULES[backend][0])
    except ImportError as error:
        return False, f"the {backend} backend is not importable: {error}"
    return module.can_run(op, device, dtype, **facts)


def choose(
    op: str, device: torch.device, dtype: torch.dtype, forced: tuple[str, ...] | None = None, **facts: Any
) -> Choice:
    """The backend for ``op``, of :data:`ORDER` or :data:`WHOLE`, on tensors of this device and dtype.

    ``facts`` are what else may matter: ``kernel_size``, ``stride``, ``stats``, the ``hidden`` units of
    squeeze-and-excite. ``forced`` saves asking the environment again.

    Raises:
        BackendError: no backend can run it, with each one's reason.
    """
    if forced is None:
        forced = forced_backends()
    key = (op, device, dtype, forced, *facts.items())
    choice = _choices.get(key)
    if choice is None:
        choice = _choices[key] = _resolve(op, device, dtype, forced, facts)
        _tell(op, device, choice, choice.backend)
    return choice


def choose_for_modules(op: str, device: torch.device, dtype: torch.dtype, **facts: Any) -> Choice:
    """:func:`choose` for modules that run their own code where only the reference is left: the log then says so."""
    forced = forced_backends()
    key = (op, device, dtype, forced, *facts.items())
    choice = _choices.get(key) or _left.get(key)
    if choice is None:
        choice = _resolve(op, device, dtype, forced, facts)
        left = choice.backend == "reference" and forced in ((), ("auto",))
        (_left if left else _choices)[key] = choice
        _tell(op, device, choice, "PyTorch's own modules (eager)" if left else choice.backend)
    return choice


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Within the block, blocks and layers take every op from ``answer(op, **facts)``: for those who record or tune them."""
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)


def chooser(device: torch.device, dtype: torch.dtype, forced: tuple[str, ...] | None = None) -> Answer:
    """``run(op, **facts)``: the functions of one block or layer on such tensors, :func:`answering`'s where that is set."""
    answer = _answer.get()
    if answer is not None:
        return answer
    if forced is None:
        forced = forced_backends()

    def run(op: str, **facts: Any) -> Callable[..., Any]:
        return choose(op, device, dtype, forced, **facts).function

    return run


def _tell(op: str, device: torch.device, choice: Choice, runs: str) -> None:
    for backend, why in choice.passed_over:
        logger.info("%s on %s: not %s (%s), using %s", op, device, backend, why, runs)


def _resolve(
    op: str, device: torch.device, dtype: torch.dtype, forced: tuple[str, ...], facts: dict[str, Any]
) -> Choice:
    automatic = forced in ((), ("auto",))
    usual = ORDER.get(op) or WHOLE[op]
    order = usual if automatic else forced
    if not automatic and op not in PRIMITIVES and op in ORDER:
        order = (*forced, *(name for name in usual if name not in forced))
    passed_over: list[tuple[str, str]] = []
    for backend in order:
        ok, reason = _ask(backend, op, device, dtype, facts)
        if ok:
            return Choice(backend, _function(backend, op), tuple(passed_over))
        passed_over.append((backend, reason))
    reasons = "; ".join(f"{backend}: {reason}" for backend, reason in passed_over)
    raise BackendError(f"effnet_fast.{op}: no backend can run {dtype} on {device}: {reasons}")


def whole(name: str, choice: Choice) -> Callable[..., Any] | None:
    """What :data:`WHOLE` has under ``name`` of the backend of ``choice``, which would run its largest part; or ``None``."""
    if _answer.get() is not None or choice.backend not in WHOLE[name]:
        return None
    return _function(choice.backend, name)


def _function(backend: str, op: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(MODULES[backend][1]), op)  # type: ignore[no-any-return]


def select(op: str, x: Tensor, **facts: Any) -> Callable[..., Any]:
    """The function that runs ``op`` for a tensor like ``x``."""
    return choose(op, x.device, x.dtype, **facts).function


def forget_choices() -> None:
    """Ask every backend anew, after a library was built or a device appeared."""
    global version
    version += 1
    _choices.clear()
    _left.clear()


def backends(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, str]]:
    """For every op and every backend: ``"ok"`` or the reason it cannot run on this device and dtype.

    Returns:
        ``{op: {backend: "ok" or reason}}``, backends in the order they are tried.
    """
    device = torch.device(device)
    table = {}
    for op, order in ORDER.items():
        answers = {backend: _ask(backend, op, device, dtype, {}) for backend in order}
        table[op] = {backend: "ok" if ok else reason for backend, (ok, reason) in answers.items()}
    return table
