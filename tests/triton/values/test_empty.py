"""Nothing to compute: no images, no pixels, no output; no launch of no programs."""

import pytest
import torch
from by_name import ByName
from effnet_fast.kernels import batch_norm, depthwise, elementwise, launch, pointwise, squeeze_excite
from effnet_fast.kernels import launchers as functions

launchers = ByName(functions)


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
