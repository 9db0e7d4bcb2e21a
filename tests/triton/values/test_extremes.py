"""What breaks kernels elsewhere: cancellation, overflow, empty batches, misaligned and distant memory."""

import pytest
import torch
from effnet_fast.kernels import configs, launchers, runtime

from effnet_fast import reference, tuning
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


@pytest.mark.parametrize("act", ["silu", "relu", "relu6", "hardswish"])
def test_nan_and_infinity_pass_through(kit, act):
    z = torch.tensor([float("nan"), float("inf"), 1.0], device=kit.device).reshape(1, 1, 1, 3)
    kit.check("affine_residual", z, None, act)


def test_one_bad_image_leaves_the_others_alone(kit):
    x = kit.image(3, 8, 5, 5)
    x[1] = float("nan")
    out = launchers.depthwise(x, kit.weight(8, 1, 3, 3), 1, (1, 1, 1, 1), act="silu", pool=True)
    assert out.y[[0, 2]].isfinite().all() and out.y[1].isnan().all()
    assert out.pooled[[0, 2]].isfinite().all() and out.pooled[1].isnan().all()


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("c", [24, 7])
def test_misaligned_memory(kit, dtype, offset, c):
    """Contiguous images whose first element is not 16-byte aligned."""
    x, z = kit.image(2, c, 5, 4, offset=offset), kit.image(2, c, 5, 4, offset=offset)
    kit.check("pointwise", x, kit.weight(c, c), residual=z)
    kit.check("pointwise_backward", z, x, kit.weight(c, c), residual_grad=z)
    kit.check("depthwise", x, kit.weight(c, 1, 3, 3), 1, (1, 1, 1, 1))
    kit.check("affine_residual", x, None, "silu", None, z)


def test_empty_batch(kit, dtype):
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


def test_offsets_beyond_32_bits(kit, tmp_path):
    """Segments 2^31 elements apart: the image's offset must be formed in 64 bits.

    Only host memory makes this cheap: the images are a sparse file, of which a few columns are touched.
    """
    if not runtime.INTERPRET:
        pytest.skip("the GPU suite runs tensors that are really this large")
    from effnet_fast.kernels import elementwise_kernels

    channels, length = 1 << 16, (1 << 15) + 3
    sparse = tmp_path / "images"
    with sparse.open("wb") as file:
        file.truncate(2 * length * channels * 2)
    memory = torch.from_file(str(sparse), shared=True, size=2 * length * channels, dtype=torch.float16)
    images = memory.view(2, length, channels)
    images[1, 0] = 2.0
    images[1, -1] = 3.0
    pooled = torch.full((2, channels), float("nan"))
    first_columns = 64
    # One column tile of the second image, of which all rows but two are zero.
    block = {"BLOCK_M": 8192, "BLOCK_N": first_columns}
    elementwise_kernels.affine_pool_kernel[(2,)](
        memory, None, None, pooled, 1.0, 2, length, 1, 5, 1, 1, channels, UNIT=1, ACT="none", **block
    )
    assert pooled[0, :first_columns].eq(0).all()
    assert pooled[1, :first_columns].eq(5).all()


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
        "batch_norm_reduce": lambda: kit.check("batch_norm_reduce", x, x, kit.norm(c)),
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
    }
    if kernel.startswith("squeeze"):
        kit.dtype = torch.float32
    for config in configs.rows(kernel, dtype, "sm_90"):
        with tuning.force(kernel, config):
            calls[kernel]()
