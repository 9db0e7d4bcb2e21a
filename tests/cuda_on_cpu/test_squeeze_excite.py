"""The CUDA squeeze-and-excite kernels, executed on the CPU, against the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from . import problems

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
ACTS = (("silu", "sigmoid"), ("relu", "hardsigmoid"))
# images, channels, reduced: one image, vectors in neither layer, in one, in both, more units than channels
SIZES = ((1, 40, 10), (3, 33, 5), (5, 96, 16), (2, 7, 9))


@dtypes
def test_forward(check: Callable[..., None], dtype: torch.dtype) -> None:
    check(
        [
            problems.squeeze_excite(dtype, *size, backward=False, bias=bias, acts=acts)
            for size in SIZES
            for bias in (True, False)
            for acts in ACTS
        ]
    )


# fewer channels than a block has threads (lanes of parts), and more
@pytest.mark.parametrize("channels", [7, 40, 96, 700])
@pytest.mark.parametrize("parts", [2, 9, 33])
def test_mean_in_parts(check: Callable[..., None], channels: int, parts: int) -> None:
    """As the depthwise forward leaves it where it cuts an image."""
    check(
        [
            problems.squeeze_excite(
                torch.float32, images, channels, 10, backward=False, acts=ACTS[0], parts=parts
            )
            for images in (1, 3)
        ]
    )


@dtypes
def test_backward(check: Callable[..., None], dtype: torch.dtype) -> None:
    check([problems.squeeze_excite(dtype, *size, backward=True, acts=ACTS[0]) for size in SIZES])


def test_backward_without_bias(check: Callable[..., None]) -> None:
    check([problems.squeeze_excite(torch.float32, 2, 17, 6, backward=True, bias=False, acts=ACTS[1])])


@pytest.mark.parametrize("parts", [1, 3, 11])
def test_backward_of_parts(check: Callable[..., None], parts: int) -> None:
    """The gate's gradient in parts, as the projection's backward leaves it, and dpooled of every pixel."""
    sizes = ((1, 40, 10), (3, 33, 5))
    check(
        [
            problems.squeeze_excite(torch.float32, *size, backward=True, acts=ACTS[0], parts=parts, area=35)
            for size in sizes
        ]
    )


def test_misaligned_weights(check: Callable[..., None]) -> None:
    given = [
        problems.squeeze_excite(torch.bfloat16, 3, 32, 8, backward=b, acts=ACTS[0]) for b in (False, True)
    ]
    check(given, misaligned=True)
