"""Declaring an op: schema from the signature, body shielded from autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import dispatch


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a kind of device; devices without autocast (meta) are never under it."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def kernel_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Declare ``effnet_fast::name``, a functional op whose body runs with autocast off.

    An op's tensors already have the dtypes it computes in. Without the shield, autocast would reach into the
    PyTorch calls of the reference and cpu backends and round what has to stay fp32; registering an autocast rule
    instead would fix one dtype for ever and cast BatchNorm's fp32 vectors too.
    """

    def declare(body: Callable[..., Any]) -> Any:
        @functools.wraps(body)
        def shielded(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if autocast_enabled(x.device.type):
                with torch.autocast(x.device.type, enabled=False):
                    return body(x, *args, **kwargs)
            return body(x, *args, **kwargs)

        schema = torch.library.infer_schema(body, mutates_args=())
        return torch.library.custom_op(f"effnet_fast::{name}", shielded, mutates_args=(), schema=schema)

    return declare


def differentiable(op: Any, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Register an op's autograd formula; the backward asks the backends that the forward was told to use.

    For CUDA tensors autograd runs backwards in threads of its own, which know nothing of ``use_backend``.
    """

    def remember(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backends = dispatch.forced_backends()
        setup_context(ctx, inputs, output)

    def run(ctx: Any, *grads: Any) -> Any:
        with dispatch.forcing(ctx.backends):
            return backward(ctx, *grads)

    op.register_autograd(run, setup_context=remember)
