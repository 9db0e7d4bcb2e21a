"""Squeeze-and-excite's gate as an autograd op: one launch for the batch, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch
from . import checks
from .declare import differentiable, kernel_op


def squeeze_excite(
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
) -> Tensor:
    """The gate of squeeze-and-excitation (Hu et al. 2018): ``gate_act(w2 . act(w1 . pooled + b1) + b2)``.

    Args:
        pooled: [N, C], float32 (float64), as ``pool=True`` of the convolutions returns it.
        w1: [R, C] or [R, C, 1, 1]; b1: [R] or ``None``; w2: [C, R] or [C, R, 1, 1]; b2: [C] or ``None``;
            any floating dtype, computed in the dtype of ``pooled``.
        act: activation between the two layers.
        gate_act: ``sigmoid`` or ``hardsigmoid``.

    Returns:
        ``gate`` [N, C] in the dtype of ``pooled``.

    Raises:
        EffnetFastError: an argument of the wrong kind, shape, dtype or device.
        BackendError: no backend can run it.
    """
    op = "ops.squeeze_excite"
    ok = isinstance(pooled, Tensor) and pooled.dim() == 2 and pooled.dtype in (torch.float32, torch.float64)
    if not ok:
        raise checks.fail(op, "pooled", "a float32 or float64 tensor [N, C]", checks.describe(pooled))
    channels = pooled.shape[1]
    if not isinstance(w1, Tensor) or w1.dim() not in (2, 4):
        raise checks.fail(op, "w1", "[R, C] or [R, C, 1, 1]", checks.describe(w1))
    squeezed = w1.shape[0]
    ones = (1, 1)
    checks.check_tensor(op, "w1", w1, (squeezed, channels, *ones)[: w1.dim()], pooled, dtype=False)
    dims = w2.dim() if isinstance(w2, Tensor) else 2
    checks.check_tensor(op, "w2", w2, (channels, squeezed, *ones)[:dims], pooled, dtype=False)
    checks.check_activation(op, "act", act)
    checks.check_activation(op, "gate_act", gate_act, checks.GATES)
    for name, bias, size in (("b1", b1, squeezed), ("b2", b2, channels)):
        if bias is not None:
            checks.check_tensor(op, name, bias, (size,), pooled, dtype=False)
    return _squeeze_excite(
        pooled, w1.reshape(squeezed, channels), b1, w2.reshape(channels, squeezed), b2, act, gate_act
    )


@kernel_op("squeeze_excite")
def _squeeze_excite(
    pooled: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: str, gate_act: str
) -> Tensor:
    run = dispatch.select("squeeze_excite", pooled, hidden=w1.shape[0])
    return run(pooled.contiguous(), w1.contiguous(), b1, w2.contiguous(), b2, act, gate_act)


@_squeeze_excite.register_fake
def _(pooled, w1, b1, w2, b2, act, gate_act):  # type: ignore[no-untyped-def]
    return pooled.new_empty(pooled.shape)


@kernel_op("squeeze_excite_backward")
def _squeeze_excite_backward(
    dgate: Tensor,
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str,
    gate_act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = dispatch.select("squeeze_excite_backward", pooled, hidden=w1.shape[0])
    dpooled, dw1, db1, dw2, db2 = run(
        dgate.contiguous(), pooled.contiguous(), w1.contiguous(), b1, w2.contiguous(), b2, act, gate_act
    )
    return (
        dpooled,
        dw1,
        pooled.new_empty(0) if db1 is None else db1,
        dw2,
        pooled.new_empty(0) if db2 is None else db2,
    )


@_squeeze_excite_backward.register_fake
def _(dgate, pooled, w1, b1, w2, b2, act, gate_act):  # type: ignore[no-untyped-def]
    return (
        pooled.new_empty(pooled.shape),
        w1.new_empty(w1.shape),
        pooled.new_empty(0) if b1 is None else b1.new_empty(b1.shape),
        w2.new_empty(w2.shape),
        pooled.new_empty(0) if b2 is None else b2.new_empty(b2.shape),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:5])
    ctx.activations = inputs[5:]


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    pooled, w1, b1, w2, b2 = ctx.saved_tensors
    dpooled, dw1, db1, dw2, db2 = _squeeze_excite_backward(grad, pooled, w1, b1, w2, b2, *ctx.activations)
    return dpooled, dw1, None if b1 is None else db1, dw2, None if b2 is None else db2, None, None


differentiable(_squeeze_excite, _backward, _setup_context, saved={i: i for i in range(5)})
