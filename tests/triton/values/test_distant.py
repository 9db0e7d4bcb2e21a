"""Images so large that an element's offset does not fit 32 bits."""

from pathlib import Path

import pytest
import torch
from by_name import ByName
from effnet_fast.kernels import batch_norm, configs, depthwise, elementwise, pointwise, runtime, tuning
from effnet_fast.kernels import launchers as functions

from effnet_fast.backend import reference as definitions
from effnet_fast.types import Norm

launchers, reference = ByName(functions), ByName(definitions)


class Distant:
    """Two images 2^31 elements apart, of whose pixels all but a corner are zero.

    Only host memory makes this cheap: the images are sparse files, and kernels visit the first tile of each alone.
    """

    CHANNELS, HEIGHT, WIDTH, CORNER = 64, 2**13 + 1, 2**12, 16

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def empty_image(self, n, channels, height, width, like):
        path = self.folder / f"image{len(list(self.folder.iterdir()))}"
        size = n * channels * height * width
        with path.open("wb") as file:
            file.truncate(size * like.element_size())
        memory = torch.from_file(str(path), shared=True, size=size, dtype=like.dtype)
        return memory.view(n, height, width, channels).permute(0, 3, 1, 2)

    def image(self, rows=1):
        like = torch.empty(0, dtype=torch.float16)
        image = self.empty_image(2, self.CHANNELS, self.HEIGHT, self.WIDTH, like)
        assert image.stride(0) > 2**31
        corner = image[:, :, :rows, : self.CORNER]
        corner.copy_(torch.randn(corner.shape))
        return image

    def crop(self, image, rows=1):
        """The corner of both images and the zeros beside it."""
        return image[:, :, : rows + 2, : self.CORNER + 4].contiguous(memory_format=torch.channels_last)

    def same(self, actual, expected, rows=1):
        """The corner of an image, or a sum over both images."""
        if actual.dim() == 4 and actual.shape[0] == 2:
            corner = (slice(None), slice(None), slice(rows), slice(self.CORNER))
            actual, expected = actual[corner], expected[corner]
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@pytest.fixture
def distant(tmp_path, monkeypatch):
    if not runtime.INTERPRET:
        pytest.skip("the GPU suite runs tensors that are really this large")
    images = Distant(tmp_path)
    for module in (pointwise, depthwise, elementwise, batch_norm):
        monkeypatch.setattr(module, "empty_image", images.empty_image, raising=False)
        monkeypatch.setattr(
            module, "plan_rows", lambda segments, length, *_: runtime.RowPlan(segments, length, 1, 1, 1)
        )
    return images


def test_offsets_beyond_32_bits_forward(kit, distant):
    kit.dtype = torch.float16
    x, residual, c = distant.image(), distant.image(), distant.CHANNELS
    weight, gate, row_scale = kit.weight(c, c), kit.positive(2, c), kit.positive(2)
    options = {"gate": gate, "row_scale": row_scale}
    y = launchers.pointwise(x, weight, **options, residual=residual).y
    distant.same(
        y, reference.pointwise(distant.crop(x), weight, **options, residual=distant.crop(residual)).y
    )
    y = launchers.affine_residual(x, None, "silu", row_scale, residual)
    distant.same(
        y, reference.affine_residual(distant.crop(x), None, "silu", row_scale, distant.crop(residual))
    )
    stencil = (kit.weight(c, 1, 3, 3), 1, (1, 1, 1, 1))
    distant.same(launchers.depthwise(x, *stencil).y, reference.depthwise(distant.crop(x), *stencil).y)
    pooled = launchers.affine_pool(x, None) * distant.HEIGHT * distant.WIDTH
    distant.same(pooled, x[:, :, 0, : distant.CORNER].float().sum(2))


@pytest.mark.parametrize("merged", [True, False])
def test_offsets_beyond_32_bits_backward(kit, distant, merged):
    kit.dtype = torch.float16
    dy, x, residual, c = distant.image(), distant.image(), distant.image(), distant.CHANNELS
    weight, gate, row_scale = kit.weight(c, c), kit.positive(2, c), kit.positive(2)
    options = {"gate": gate, "row_scale": row_scale}
    with tuning.force(
        "pointwise_backward", configs.rows("pointwise_backward", dy.dtype, "sm_90")[0] if merged else None
    ):
        got = launchers.pointwise_backward(dy, x, weight, **options, residual_grad=residual)
    crops = (distant.crop(dy), distant.crop(x))
    expected = reference.pointwise_backward(*crops, weight, **options, residual_grad=distant.crop(residual))
    distant.same(got.dx, expected.dx)
    distant.same(got.dweight, expected.dweight)
    if merged:
        return
    stencil = (kit.weight(c, 1, 3, 3), 1, (1, 1, 1, 1))
    got = launchers.depthwise_backward(dy, x, *stencil, residual_grad=residual)
    expected = reference.depthwise_backward(*crops, *stencil, residual_grad=distant.crop(residual))
    distant.same(got.dx, expected.dx)
    distant.same(got.dweight, expected.dweight)
    sums = launchers.batch_norm_reduce(dy, x, Norm(torch.zeros(c), torch.ones(c)), row_scale=row_scale)
    distant.same(
        sums.sum(0)[0], (dy[:, :, 0, : distant.CORNER].float() * row_scale[:, None, None]).sum((0, 2))
    )
