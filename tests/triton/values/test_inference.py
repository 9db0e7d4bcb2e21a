"""What inference alone asks of the kernels: BatchNorms folded as they are stored through, weights of float32, pools in parts."""

import pytest
import torch

VECTORS = {
    "fp32": (torch.float32, True),
    "fp16": (torch.float16, True),
    "bf16": (torch.bfloat16, True),
    "no parameters": (torch.float32, False),
}
norms = pytest.mark.parametrize("vectors", VECTORS)


@norms
def test_pointwise(kit, dtype, vectors):
    n, cin, cout, h, w = 2, 24, 17, 5, 3
    norm = kit.running_norm(cout, *VECTORS[vectors])
    x, weight, residual = kit.image(n, cin, h, w), kit.weight(cout, cin), kit.image(n, cout, h, w)
    kit.check("pointwise", x, weight, affine=norm, act="silu")
    kit.check("pointwise", x, weight, gate=kit.positive(n, cin), affine=norm, residual=residual)


@norms
def test_depthwise(kit, dtype, vectors):
    norm = kit.running_norm(17, *VECTORS[vectors])
    x, weight = kit.image(2, 17, 7, 5), kit.weight(17, 1, 3, 3)
    kit.check("depthwise", x, weight, 2, (0, 1, 2, 1), affine=norm, act="silu", pool=True)


@norms
def test_residual_pass(kit, dtype, vectors):
    norm = kit.running_norm(11, *VECTORS[vectors])
    kit.check("affine_residual", kit.image(2, 11, 3, 4), norm, "silu")


def test_weights_of_float32(kit, dtype):
    """Under autocast the modules' weights stay float32; the pointwise ones are rounded on the way, as autocast rounds them."""
    x = kit.image(2, 24, 5, 3)
    rounded = kit.weight(13, 24)
    wide = kit.check("pointwise", x, rounded.float(), affine=kit.affine(13), act="silu")
    assert wide.y.dtype == dtype
    from effnet_fast.kernels import launchers

    assert torch.equal(launchers.pointwise(x, rounded.float()).y, launchers.pointwise(x, rounded).y)
    stencil = kit.weight(24, 1, 5, 5).float() * 1.0009765625
    kit.check("depthwise", x, stencil, 1, (2, 2, 2, 2), affine=kit.running_norm(24), act="silu")


@pytest.mark.parametrize("parts", [1, 3, 8, 21])
def test_squeeze_excite_of_parts(kit, parts):
    """The mean in parts, as kernels that cut an image leave it."""
    n, c, hidden = 2, 37, 5
    layers = kit.weight(hidden, c), kit.vector(hidden), kit.weight(c, hidden), kit.vector(c)
    kit.check("squeeze_excite", kit.vector(n, parts, c) / parts, *layers)
