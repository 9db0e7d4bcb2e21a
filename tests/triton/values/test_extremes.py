"""What breaks kernels elsewhere: cancellation, overflow, empty batches, misaligned and distant memory."""

from pathlib import Path

import pytest
import torch
from effnet_fast.kernels import (
    batch_norm,
    configs,
    depthwise,
    elementwise,
    launch,
    launchers,
    pointwise,
    runtime,
    squeeze_excite,
    tuning,
)

from effnet_fast.backend import reference
from effnet_fast.types import Affine, Norm


def test_statistics_survive_a_large_mean(kit):
    """Mean 1e3, deviation 1e-2: E[x^2] - E[x]^2 in fp32 has no correct digit left here."""
    c = 24
    x = kit.image(3, c, 9, 8)
    x.mul_(1e-2).add_(1e3)
    eye = torch.eye(c, device=kit.device)
    out = launchers.pointwise(x, eye, stats=True)
    var = launchers.batch_norm_finalize(out.stats, None, None, 0.0).var
    truth = x.double().var(dim=(0, 2, 3), correction=0)
    assert ((var - truth).abs() / truth).max() < 1e-3
    # The formula that must not be used, to show that the test can tell.
    naive = x.square().mean(dim=(0, 2, 3)) - x.mean(dim=(0, 2, 3)).square()
    assert ((naive - truth).abs() / truth).max() > 1


def test_many_partials_merge_to_the_same_statistics(kit, monkeypatch):
    """Several programs, several segments a program, several tiles a segment: one answer."""
    x, weight, gate = kit.image(5, 16, 13, 11), kit.weight(24, 16), kit.positive(5, 16)
    for programs in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(runtime, "PROGRAMS", programs)
        out = kit.check("pointwise", x, weight, gate=gate, stats=True, pool=True)
        assert out.stats.shape[0] <= max(programs, 1)


@pytest.mark.parametrize("value", [0.0, 20.0, 88.0, 89.0, 1e4, 65504.0])
@pytest.mark.parametrize("act", ["silu", "hardswish", "sigmoid"])
def test_activations_at_extreme_values(kit, value, act):
    """No NaN from exp overflowing, forward or backward."""
    z = torch.tensor([value, -value], device=kit.device).reshape(1, 1, 1, 2)
    one, zero = torch.ones(1, device=kit.device), torch.zeros(1, device=kit.device)
    out = kit.check("affine_residual", z, None, act)
    assert out.isfinite().all()
    sums = kit.check(
        "batch_norm_reduce", torch.ones_like(z), z, Norm(zero, one), affine=Affine(one, zero), act=act
    )
    assert sums.isfinite().all()


@pytest.mark.parametrize("scale", [1e19, 1e20, 1e30])
def test_variances_beyond_fp32(kit, scale):
    """Squares overflow: a variance is infinity, never NaN, and what is normalized by it the bias."""
    x = kit.image(3, 24, 9, 8, scale=scale)
    eye = torch.eye(24, device=kit.device)
    stencil = torch.zeros(24, 1, 3, 3, device=kit.device)
    stencil[:, :, 1, 1] = 1
    for partials in (
        launchers.channel_stats(x),
        launchers.pointwise(x, eye, stats=True).stats,
        launchers.depthwise(x, stencil, 1, (1, 1, 1, 1), stats=True).stats,
    ):
        assert not partials.isnan().any()
        bias = kit.vector(24)
        stats = launchers.batch_norm_finalize(partials, kit.vector(24), bias, 1e-3)
        torch.testing.assert_close(stats.mean.double(), x.double().mean((0, 2, 3)), rtol=0, atol=1e-5 * scale)
        y = launchers.affine_residual(x, stats.affine, "none")
        infinite = stats.var.isinf()
        assert y.isfinite().all() and infinite.any()
        torch.testing.assert_close(
            y[:, infinite], bias[infinite][None, :, None, None].expand_as(y[:, infinite])
        )


@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_the_gradient_passes_at_nan(kit, act):
    z = torch.full((2, 8, 3, 5), float("nan"), device=kit.device)
    one, zero = torch.ones(8, device=kit.device), torch.zeros(8, device=kit.device)
    sums = launchers.batch_norm_reduce(
        torch.ones_like(z), z, Norm(zero, one), affine=Affine(one, zero), act=act
    )
    assert sums.sum(0)[0].eq(30).all()


@pytest.mark.parametrize("act", ["silu", "relu", "relu6", "hardswish"])
def test_nan_and_infinity_pass_through(kit, act):
    z = torch.tensor([float("nan"), float("inf"), 1.0], device=kit.device).reshape(1, 1, 1, 3)
    kit.check("affine_residual", z, None, act)


def test_one_bad_image_leaves_the_others_alone(kit):
    x = kit.image(3, 8, 5, 5)
    x[1] = float("nan")
    out = launchers.depthwise(x, kit.weight(8, 1, 3, 3), 1, (1, 1, 1, 1), act="silu", pool=True)
    assert out.y[[0, 2]].isfinite().all() and out.y[1].isnan().all()
    assert out.mean[[0, 2]].isfinite().all() and out.mean[1].isnan().all()


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("c", [24, 7])
def test_misaligned_memory(kit, dtype, offset, c):
    """Contiguous images whose first element is not 16-byte aligned."""
    x, z = kit.image(2, c, 5, 4, offset=offset), kit.image(2, c, 5, 4, offset=offset)
    kit.check("pointwise", x, kit.weight(c, c), residual=z)
    kit.check("pointwise_backward", z, x, kit.weight(c, c), residual_grad=z)
    kit.check("depthwise", x, kit.weight(c, 1, 3, 3), 1, (1, 1, 1, 1))
    kit.check("affine_residual", x, None, "silu", None, z)


@pytest.fixture
def no_empty_grid(monkeypatch):
    """A launch of no programs is refused by CUDA where Triton does not drop it."""

    def checked(kernel, programs, *arguments, **options):
        assert programs > 0, kernel
        launch.launch(kernel, programs, *arguments, **options)

    for module in (batch_norm, depthwise, elementwise, pointwise, squeeze_excite):
        monkeypatch.setattr(module, "launch", checked)


def test_empty_batch(kit, dtype, no_empty_grid):
    """N = 0: outputs of the right shapes, zero sums, no launch that fails."""
    x, dy, c = kit.image(0, 8, 4, 4), kit.image(0, 6, 4, 4), 8
    gate = kit.vector(0, c)
    kit.check("pointwise", x, kit.weight(6, c), gate=gate, affine=kit.affine(6), pool=True)
    assert launchers.pointwise(x, kit.weight(6, c), stats=True).stats.eq(0).all()
    for options in ({}, {"in_affine": kit.affine(c), "in_norm": kit.norm(c), "gate": gate}):
        kit.check("pointwise_backward", dy, x, kit.weight(6, c), z=dy, grad=kit.grad(6), **options)
    kit.check("depthwise", x, kit.weight(c, 1, 3, 3), 2, (1, 1, 1, 1), pool=True)
    assert launchers.depthwise(x, kit.weight(c, 1, 3, 3), 2, (1, 1, 1, 1), stats=True).stats.eq(0).all()
    half = kit.image(0, c, 2, 2)
    kit.check("depthwise_backward", half, x, kit.weight(c, 1, 3, 3), 2, (1, 1, 1, 1))
    kit.check("affine_pool", x, kit.affine(c))
    kit.check("affine_residual", x, kit.affine(c))
    kit.check("batch_norm_reduce", x, x, kit.norm(c))
    kit.check("gate_batch_norm_sums", kit.vector(5, 0, c), gate, gate)
    kit.dtype = torch.float32
    layers = (kit.vector(3, c), kit.vector(3), kit.vector(c, 3), kit.vector(c))
    kit.check("squeeze_excite", gate, *layers)
    kit.check("squeeze_excite_backward", gate, gate, *layers)


@pytest.mark.parametrize("height, width", [(0, 5), (4, 0), (0, 0)])
def test_no_pixels(kit, height, width, no_empty_grid):
    """H or W = 0: PyTorch refuses convolutions of nothing, but padding may make something of it."""
    c, cout = 8, 6
    x, dy = kit.image(2, c, height, width), kit.image(2, cout, height, width)
    vectors = {"in_affine": kit.affine(c), "in_norm": kit.norm(c), "in_act": "silu"}
    stencil = (kit.weight(c, 1, 3, 3), 1, (2, 1, 1, 2))
    y = kit.check("depthwise", x, *stencil, affine=kit.affine(c), act="silu", pool=True).y
    assert y.shape == (2, c, height + 1, width + 1)
    kit.check("depthwise", x, *stencil, stats=True)
    for options in ({}, vectors):
        kit.check("depthwise_backward", kit.image(*y.shape), x, *stencil, **options)

    out = launchers.pointwise(x, kit.weight(cout, c), gate=kit.vector(2, c), stats=True, pool=True)
    assert out.y.shape == dy.shape and out.stats.eq(0).all()
    assert out.mean.shape == (2, cout) and out.mean.isnan().all()
    for options in ({}, {**vectors, "gate": kit.vector(2, c)}):
        back = launchers.pointwise_backward(dy, x, kit.weight(cout, c), z=dy, grad=kit.grad(cout), **options)
        assert back.dx.shape == x.shape and back.dweight.eq(0).all()
        assert back.sums is None or (back.sums.shape == (5, 2, c) and back.sums.eq(0).all())

    assert kit.check("affine_pool", x, kit.affine(c)).isnan().all()
    kit.check("affine_residual", x, kit.affine(c), "silu", kit.vector(2), x)
    kit.check("batch_norm_act_grad", x, x, kit.grad(c))
    kit.check("batch_norm_reduce", x, x, kit.norm(c))
    assert launchers.channel_stats(x).eq(0).all()


def test_no_output(kit, no_empty_grid):
    """An image smaller than the stencil gives no pixels and zero gradients."""
    x, weight = kit.image(2, 8, 2, 5), kit.weight(8, 1, 3, 3)
    y = launchers.depthwise(x, weight, 1, (0, 0, 0, 0), stats=True)
    assert y.y.shape == (2, 8, 0, 3) and y.stats.eq(0).all()
    back = launchers.depthwise_backward(y.y, x, weight, 1, (0, 0, 0, 0), residual_grad=x)
    assert back.dx.equal(x) and back.dweight.eq(0).all()


def test_launches_are_repeatable(kit, dtype):
    """Bitwise equal results run after run: nothing depends on the order in which programs finish."""
    x, weight = kit.image(6, 40, 14, 14), kit.weight(24, 40)
    options = {"in_affine": kit.affine(40), "in_act": "silu", "gate": kit.positive(6, 40)}
    first = launchers.pointwise(x, weight, **options, stats=True)
    norm = {"in_norm": kit.norm(40)}
    back = launchers.pointwise_backward(first.y, x, weight, **options, **norm)
    for _ in range(2 if runtime.INTERPRET else 50):
        again = launchers.pointwise(x, weight, **options, stats=True)
        assert again.y.equal(first.y) and again.stats.equal(first.stats)
        gradients = launchers.pointwise_backward(first.y, x, weight, **options, **norm)
        assert all(a.equal(b) for a, b in zip(gradients, back, strict=True))


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


@pytest.mark.parametrize("kernel", configs.TABLE)
def test_every_configuration(kit, dtype, kernel):
    """Not only the winners: each configuration that may be chosen gives the right values."""
    n, c, cout, h, w = 3, 40, 24, 7, 6
    x, z = kit.image(n, c, h, w), kit.image(n, cout, h, w)
    excite = (kit.vector(9, c), kit.vector(9), kit.vector(c, 9), kit.vector(c))
    back = {
        "z": z,
        "grad": kit.grad(cout),
        "in_affine": kit.affine(c),
        "in_act": "silu",
        "in_norm": kit.norm(c),
        "gate": kit.positive(n, c),
    }
    stencil = (kit.weight(c, 1, 3, 3), 2, (1, 0, 1, 2))
    half = kit.image(n, c, 4, 3)
    norm = {"z": half, "affine": kit.affine(c), "act": "silu", "grad": kit.grad(c)}
    stats = reference.batch_norm_fold(None, None, kit.vector(c), kit.positive(c), 1e-3)
    conv = (z, x, kit.weight(cout, c))

    def merge() -> None:
        rows, weights = [kit.vector(9, 1, cout * c), None, None], [kit.weight(cout, c), None, None]
        got, expected = (f.merge_weight_grads(rows, weights)[0] for f in (launchers, reference))
        torch.testing.assert_close(got, expected)

    calls = {
        "pointwise_fwd": lambda: kit.check(
            "pointwise", x, kit.weight(cout, c), gate=back["gate"], stats=True, pool=True
        ),
        "pointwise_dgrad": lambda: kit.check("pointwise_backward", *conv, **back, need_dw=False),
        "pointwise_wgrad": lambda: kit.check(
            "pointwise_backward", *conv, z=z, grad=back["grad"], need_dx=False
        ),
        "pointwise_backward": lambda: kit.check("pointwise_backward", *conv, **back),
        "depthwise_fwd": lambda: kit.check("depthwise", x, *stencil, stats=True, pool=True),
        "depthwise_dgrad": lambda: kit.check("depthwise_backward", half, x, *stencil, **norm, need_dw=False),
        "depthwise_wgrad": lambda: kit.check("depthwise_backward", half, x, *stencil, **norm, need_dx=False),
        "batch_norm_finalize": lambda: kit.check(
            "batch_norm_finalize", kit.positive(9, 3, c).add(1), kit.vector(c), kit.vector(c), 1e-3
        ),
        "batch_norm_fold": lambda: kit.check("batch_norm_fold", None, None, *stats.vectors[:2], 1e-3),
        "channel_stats": lambda: kit.check("channel_stats", x),
        "batch_norm_reduce": lambda: kit.check("batch_norm_reduce", x, x, kit.norm(c)),
        "batch_norm_act_grad": lambda: kit.check(
            "batch_norm_act_grad", x, x, kit.grad(c), affine=kit.affine(c), act="silu"
        ),
        "batch_norm_backward_finalize": lambda: kit.check(
            "batch_norm_backward_finalize", kit.vector(9, 2, c), 7, stats, True
        ),
        "affine_pool": lambda: kit.check("affine_pool", x, kit.affine(c), "silu"),
        "affine_residual": lambda: kit.check("affine_residual", x, kit.affine(c), "silu", kit.positive(n), x),
        "sum_partials": lambda: kit.check("affine_pool", kit.image(1, c, 20, 20), None),
        "squeeze_excite_fwd": lambda: kit.check("squeeze_excite", kit.vector(n, c), *excite),
        "squeeze_excite_bwd": lambda: kit.check("squeeze_excite_backward", *[kit.vector(n, c)] * 2, *excite),
        "squeeze_excite_wgrad": lambda: kit.check(
            "squeeze_excite_backward", *[kit.vector(n, c)] * 2, *excite
        ),
        "gate_batch_norm_sums": lambda: kit.check(
            "gate_batch_norm_sums", kit.vector(5, n, c), back["gate"], None
        ),
        "gate_batch_norm_finalize": lambda: kit.check(
            "gate_batch_norm_finalize", kit.vector(5, n, c) + 1, back["gate"], None, 77, stats, True
        ),
        "merge_weight_grads": merge,
    }
    if kernel.startswith("squeeze"):
        kit.dtype = torch.float32
    for config in configs.rows(kernel, dtype, "sm_90"):
        with tuning.force(kernel, config):
            calls[kernel]()
