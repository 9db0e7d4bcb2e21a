"""Convolutions and matrix products as one launch each that computes nothing: cuDNN and cuBLAS cannot run on the fake device.

They are implementations of PyTorch's own operators, so autograd, autocast and modules are the real ones. An
implementation in Python costs about what cuDNN's and cuBLAS's host code does, some ten microseconds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import steering


def _launched(name: bytes, like: Tensor) -> None:
    steering.launch(name, torch._C._cuda_getCurrentRawStream(like.device.index))


def _convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> Tensor:
    size = [
        (x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    # As cuDNN chooses: channels last if either operand is.
    last = any(t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
    memory = torch.channels_last if last else torch.contiguous_format
    out = torch.empty(
        (x.shape[0], weight.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=memory
    )
    _launched(b"convolution", x)
    return out


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *settings: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    mask = settings[-1]
    grads: list[Tensor | None] = [None, None, None]
    for index, like in enumerate((x, weight)):
        if mask[index]:
            grads[index] = torch.empty_like(like)
            _launched(b"convolution_backward", x)
    if mask[2]:
        grads[2] = dy.new_empty((dy.shape[1],))
        _launched(b"convolution_backward_bias", x)
    return grads[0], grads[1], grads[2]


def _mm(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty((a.shape[0], b.shape[1]), dtype=a.dtype, device=a.device)
    _launched(b"mm", a)
    return out


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    return _mm(a, b)


def _product_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    _launched(b"mm", a)
    return out


def _addmm_out(bias: Tensor, a: Tensor, b: Tensor, *, out: Tensor, **_: Any) -> Tensor:
    return _product_out(a, b, out=out)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty((a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device)
    _launched(b"bmm", a)
    return out


@cache
def install() -> Any:
    """Replace them in this process."""
    torch.backends.cudnn.enabled = False
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("convolution", _convolution),
        ("convolution_backward", _convolution_backward),
        ("mm", _mm),
        ("addmm", _addmm),
        ("bmm", _bmm),
        # Inductor's code calls these.
        ("mm.out", _product_out),
        ("addmm.out", _addmm_out),
    ):
        library.impl(name, function, "CUDA")
    return library
