"""Declaring an op: schema from the signature, body shielded from autocast, the short way there for plain eager calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from .. import dispatch, replay
from ..types import Running
from .double_backward import Originals, reference_gradients

#: Arguments that nobody watches: of a subclass (fake, functional, distributed tensors) the dispatcher has to know, and
#: symbolic numbers are somebody's who traces.
_PLAIN = frozenset(
    (Tensor, torch.nn.Parameter, type(None), bool, int, float, str, list, tuple, torch.Size, torch.dtype)
)

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_result(function: Function) -> Function:
    """``torch.compiler.assume_constant_result``: compiled programs keep what ``function`` answered while they were traced.

    That decorator imports the whole of ``torch._dynamo``, more than a second which only ``torch.compile`` needs; its
    mark is all that tracing looks for.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a kind of device; devices without autocast (meta) are never under it."""
    # The common two by name: asking PyTorch costs a microsecond.
    available = device_type in ("cuda", "cpu") or _has_autocast(device_type)
    return available and torch.is_autocast_enabled(device_type)


# torch 2.11's compiler cannot trace the question.
@constant_result
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def is_plain(args: tuple[Any, ...]) -> bool:
    """Whether a call is plain eager PyTorch: nothing traces, transforms or intercepts it.

    Then the dispatcher has nothing to add to an op but time, which with thirty arguments is half a millisecond.
    """
    return is_unwatched() and _PLAIN.issuperset(map(type, args)) and not args[0].is_meta


def are_plain(tensors: list[Tensor]) -> bool:
    """:func:`is_plain` for a list of tensors, in a tenth of the time: in inference it is most of a block's."""
    return is_plain(tuple(tensors))


def is_unwatched() -> bool:
    """Whether no mode is on that has to see every op."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    return torch._C._get_tracing_state() is None and not is_transformed()


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode derivatives are at work, which ask every op for rules that ours lack."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def made_by_our_op(x: Tensor) -> bool:
    """Whether ``x`` came out of one of our ops just now, in a call with gradients."""
    return hasattr(x.grad_fn, "originals")


class KernelOp:
    """A functional op of ours: called plainly it is a Python function or an ``autograd.Function``, else the op.

    Both ways run the same body and, once :func:`differentiable`, the same backward.
    """

    def __init__(
        self, name: str, body: Callable[..., Any], repeated: bool, bundles: dict[str, Sequence[str]]
    ) -> None:
        self._gathered = _gathering(body, bundles)
        flat = self._gathered(body)
        self._body = shielded(flat)
        self._plain_body = shielded(_repeating(flat)) if repeated else self._body
        # What is moved in place is no part of the op, which is functional.
        signature = inspect.signature(body, eval_str=True)
        kept = _spread([p for p in signature.parameters.values() if p.name != "running"], bundles)
        self.arity = len(kept)
        functional = functools.wraps(body)(lambda *args: self._body(*args))
        functional.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        schema = torch.library.infer_schema(functional, mutates_args=())
        self.op = torch.library.custom_op(f"effnet_fast::{name}", functional, mutates_args=(), schema=schema)
        self._function: type[torch.autograd.Function] | None = None
        functools.update_wrapper(self, body)

    def __call__(self, *args: Any) -> Any:
        if len(args) == self.arity and is_plain(args):
            return self._plainly(args)
        if is_transformed():
            return self.composed(*args)
        return self.op(*args)

    def composed(self, *args: Any) -> Any:
        """The op as a composition of PyTorch's, which every transformation knows how to differentiate."""
        with dispatch.forcing(("reference",)):
            return self._body(*args)

    def moving(
        self,
        running: tuple[Running | None, ...],
        args: tuple[Any, ...],
        check: Callable[[Any], None] | None = None,
    ) -> tuple[Any, bool]:
        """The op's outputs, and whether its body has moved ``running`` too: called plainly it may.

        On the CPU, where looking at values waits for nothing, ``check`` sees the outputs before anything moves.
        """
        buffers = [t for r in running if r is not None for t in r.tensors]
        if is_plain((*args, *buffers)):
            if check is not None and args[0].is_cpu:
                output = self._plainly(args)
                check(output)
                return output, False
            output = self._plainly((*args, running))
            # Kernels write unseen by autograd. It is told of the count and not of the statistics, as by nn.BatchNorm2d.
            increment_version([r.batches for r in running if r is not None and r.batches is not None])
            return output, True
        return self(*args), False

    def _plainly(self, args: tuple[Any, ...]) -> Any:
        if not torch.is_grad_enabled():
            return self._plain_body(*args)
        if self._function is not None:
            return self._function.apply(*args)
        if any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return self.op(*args)
        return self._plain_body(*args)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        return self.op.register_fake(self._gathered(fake))

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        self.op.register_autograd(backward, setup_context=setup_context)
        body = self._plain_body

        def forward(ctx: Any, *args: Any) -> Any:
            output = body(*args)
            setup_context(ctx, args, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._function = type(f"{self.__name__}_op", (torch.autograd.Function,), members)  # type: ignore[attr-defined]


def shielded(body: Callable[..., Any]) -> Callable[..., Any]:
    """``body`` with autocast off for the device of its first argument."""

    @functools.wraps(body)
    def without_autocast(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        kind = x.device.type
        if not autocast_enabled(kind):
            return body(x, *args, **kwargs)
        torch.set_autocast_enabled(kind, False)
        try:
            return body(x, *args, **kwargs)
        finally:
            torch.set_autocast_enabled(kind, True)

    return without_autocast


def _repeating(body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def repeating(*args: Any) -> Any:
        return replay.repeat(body, args)

    return repeating


def _spread(
    parameters: list[inspect.Parameter], bundles: dict[str, Sequence[str]]
) -> list[inspect.Parameter]:
    """The schema's parameters: a bundle's tensors in its place."""
    flat = []
    for parameter in parameters:
        for name in bundles.get(parameter.name, ()):
            kind = Tensor | None if name.endswith("?") else Tensor
            flat.append(parameter.replace(name=name.rstrip("?"), annotation=kind))
        if parameter.name not in bundles:
            flat.append(parameter)
    return flat


def _gathering(
    body: Callable[..., Any], bundles: dict[str, Sequence[str]]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the function is called with the schema's arguments and gets its bundles as tuples."""
    if not bundles:
        return lambda function: function
    ranges, at = [], 0
    for name in inspect.signature(body).parameters:
        size = len(bundles.get(name, (name,)))
        if name in bundles:
            ranges.append((at, at + size))
        at += size

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def flat(*args: Any) -> Any:
            gathered: list[Any] = []
            done = 0
            for first, last in ranges:
                gathered += (*args[done:first], args[first:last])
                done = last
            return function(*gathered, *args[done:])

        return flat

    return decorate


def kernel_op(
    name: str, *, repeated: bool = False, bundles: dict[str, Sequence[str]] | None = None
) -> Callable[[Callable[..., Any]], KernelOp]:
    """Declare ``effnet_fast::name``, a functional op whose body runs with autocast off.

    An op's tensors already have the dtypes it computes in. Without the shield, autocast would reach into the
    PyTorch calls of the reference and cpu backends and round what has to stay fp32; registering an autocast rule
    instead would fix one dtype for ever and cast BatchNorm's fp32 vectors too.

    Args:
        repeated: called plainly, the op is recorded and launched again (:mod:`effnet_fast.replay`).
        bundles: parameters of the body and of its fake that are tuples of tensors -> the names that their elements have
            in the schema, which is flat (autograd and tracing know no other); "?" behind a name: it may be ``None``.
    """
    return functools.partial(KernelOp, name, repeated=repeated, bundles=bundles or {})


def differentiable(
    op: KernelOp,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    saved: dict[int, int],
    unneeded: tuple[int, ...] = (),
) -> None:
    """Register an op's autograd formula; the backward asks the backends that the forward was told to use.

    For CUDA tensors autograd runs backwards in threads of its own, which know nothing of ``use_backend``.

    A backward that is to be differentiated itself (``create_graph=True``: gradient penalties, products with the
    Hessian) does not run the formula, whose kernels are opaque, but differentiates the op's reference.

    Args:
        saved: where ``setup_context`` saves an input: place among the inputs -> place among the saved tensors.
        unneeded: inputs whose value no derivative depends on, because they are added.
    """

    def remember(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backends = dispatch.forced_backends()
        setup_context(ctx, inputs, output)
        ctx.originals = Originals(inputs[: op.arity], saved, unneeded)

    def run(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            inputs = ctx.originals.restore(ctx.saved_tensors)
            derivatives = reference_gradients(op.composed, inputs, ctx.needs_input_grad, grads)
            return (*derivatives, *(None,) * (len(ctx.needs_input_grad) - len(derivatives)))
        with dispatch.forcing(ctx.backends):
            return backward(ctx, *grads)

    op.register_autograd(run, setup_context=remember)
