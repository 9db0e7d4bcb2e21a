"""Argument checks shared by the public ops: one sentence that names op, argument, expectation and value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend.reference import ACTIVATIONS
from ..errors import EffnetFastError
from ..types import KERNEL_SIZES, STRIDES, Padding, accumulation_dtype

GATES = ("sigmoid", "hardsigmoid")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def fail(op: str, argument: str, expected: str, got: object) -> EffnetFastError:
    """The error to raise, in the one form all ops use."""
    return EffnetFastError(f"effnet_fast.{op}: {argument}: expected {expected}, got {got}")


def describe(t: object) -> str:
    if not isinstance(t, Tensor):
        return type(t).__name__
    return f"{t.dtype} {tuple(t.shape)} on {t.device}".removeprefix("torch.")


def check_activation(op: str, argument: str, name: str, allowed: Sequence[str] = ACTIVATIONS) -> None:
    if name not in allowed:
        raise fail(op, argument, f"one of {', '.join(allowed)}", repr(name))


def check_image(op: str, argument: str, x: object) -> None:
    """A floating [N, C, H, W] tensor."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in _FLOATS:
        raise fail(op, argument, "a float32, float16, bfloat16 or float64 tensor [N, C, H, W]", describe(x))


def check_tensor(
    op: str, argument: str, t: object, shape: Sequence[int], like: Tensor, dtype: bool = True
) -> None:
    """A tensor of exactly this shape on the device (and, unless told otherwise, in the dtype) of ``like``."""
    ok = isinstance(t, Tensor) and tuple(t.shape) == tuple(shape) and t.device == like.device
    if not ok or (dtype and t.dtype != like.dtype):
        kind = f"{like.dtype} ".removeprefix("torch.") if dtype else ""
        raise fail(op, argument, f"{kind}{tuple(shape)} on {like.device}", describe(t))


def vector(op: str, argument: str, t: object, shape: Sequence[int], like: Tensor) -> Tensor:
    """A small parameter, checked and brought to the accumulation dtype, contiguous."""
    check_tensor(op, argument, t, shape, like, dtype=False)
    assert isinstance(t, Tensor)
    return t.to(accumulation_dtype(like.dtype)).contiguous()


def stencil_size(op: str, argument: str, weight: object) -> int:
    """k of a depthwise weight [C, 1, k, k]."""
    kernel = weight.shape[-1] if isinstance(weight, Tensor) and weight.dim() == 4 else 0
    if kernel not in KERNEL_SIZES:
        sizes = ", ".join(map(str, KERNEL_SIZES))
        raise fail(op, argument, f"[C, 1, k, k] with k in {sizes}", describe(weight))
    return kernel


def check_stride(op: str, argument: str, stride: object) -> None:
    if stride not in STRIDES:
        raise fail(op, argument, " or ".join(map(str, STRIDES)), stride)


def check_padding(op: str, padding: int | Sequence[int]) -> Padding:
    """An int (all four sides) or (left, right, top, bottom)."""
    sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    if len(sides) != 4 or any(not isinstance(side, int) or side < 0 for side in sides):
        raise fail(op, "padding", "an int >= 0 or (left, right, top, bottom)", padding)
    return sides  # type: ignore[return-value]


def output_size(op: str, x: Tensor, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Height and width after the convolution, as :func:`torch.nn.functional.conv2d` counts them."""
    left, right, top, bottom = padding
    height = x.shape[2] + top + bottom - kernel
    width = x.shape[3] + left + right - kernel
    if height < 0 or width < 0:
        raise fail(
            op, "x", f"at least {kernel}x{kernel} with its padding {padding}", f"{x.shape[2]}x{x.shape[3]}"
        )
    return height // stride + 1, width // stride + 1


def channels_last(x: Tensor) -> Tensor:
    """Dense NHWC memory, the layout of every kernel; a copy only where the strides say otherwise."""
    if torch._C._are_functorch_transforms_active():
        # Of what is batched no layout is known, and the reference, which runs then, asks for none.
        return x
    return x.contiguous(memory_format=torch.channels_last)


def affine_vectors(
    op: str, argument: str, affine: tuple[Tensor, Tensor] | None, act: str, like: Tensor, channels: int
) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift) checked; an activation without an affine gets the identity, so kernels know one case."""
    if affine is None:
        if act == "none":
            return None, None
        ones = torch.ones(channels, dtype=accumulation_dtype(like.dtype), device=like.device)
        return ones, torch.zeros_like(ones)
    if not isinstance(affine, tuple) or len(affine) != 2:
        raise fail(op, argument, "a tuple (scale, shift) or None", type(affine).__name__)
    scale = vector(op, f"{argument}.scale", affine[0], (channels,), like)
    return scale, vector(op, f"{argument}.shift", affine[1], (channels,), like)
