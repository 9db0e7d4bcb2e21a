"""Images whose pixels lie more than 2^31 elements apart: index arithmetic in 64 bits, shown by strides over sparse memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import make_network
from patched_blocks import shake_batch_norms, torchvision_block
from torch import Tensor

import effnet_fast
from effnet_fast import dispatch
from effnet_fast.backend import native
from effnet_fast.types import Affine

FAR = 2**31 + 2**12


@pytest.fixture(autouse=True)
def _native() -> None:
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)


def spread(near: Tensor, strides: tuple[int, int, int, int], folder: Path) -> Tensor:
    """The same values at these strides, in a file of holes of which only the pages used exist."""
    size = sum((length - 1) * stride for length, stride in zip(near.shape, strides, strict=True)) + 1
    assert size > 2**31
    path = folder / "far"
    with path.open("wb") as file:
        file.truncate(size * near.element_size())
    memory = torch.from_file(str(path), shared=True, size=size, dtype=near.dtype)
    return torch.as_strided(memory, near.shape, strides).copy_(near)


#: Of batch and rows; the product with the row's number is what overflows in the second.
@pytest.mark.parametrize("batch, row", [(FAR, 12 * 40), (2**20, FAR // 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images(dtype: torch.dtype, batch: int, row: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    near = torch.randn(2, 40, 10, 12).to(dtype).contiguous(memory_format=torch.channels_last)
    far = spread(near, (batch, 1, row, 40), tmp_path)
    weight, affine = torch.randn(40, 1, 3, 3).to(dtype), Affine(torch.rand(40), torch.randn(40))
    options = {"affine": affine, "act": "silu", "pool": True}
    run = dispatch.select("depthwise", near)
    for got, want in zip(
        run(far, weight, 2, (1, 1, 1, 1), **options),
        run(near, weight, 2, (1, 1, 1, 1), **options),
        strict=True,
    ):
        assert (got is None and want is None) or torch.equal(got, want)


@pytest.mark.parametrize(
    "strides", [(FAR, 64 * 64, 64, 1), (2**20, FAR // 2, 64, 1), (2**20, 1, FAR // 60, 3)]
)
def test_pictures(strides: tuple[int, int, int, int], tmp_path: Path) -> None:
    """Networks and blocks take images of any strides."""
    torch.manual_seed(2)
    near = torch.randn(2, 3, 64, 64)
    far = spread(near, strides, tmp_path)
    optimized = effnet_fast.optimize(make_network("timm-lite"), near)
    assert torch.equal(optimized(far), optimized(near))
    model = effnet_fast.patch(shake_batch_norms(torchvision_block())).eval()
    wide = torch.randn(2, 8, 10, 12)
    with torch.no_grad():
        assert torch.equal(model(spread(wide, (FAR, 120, 12, 1), tmp_path)), model(wide))
