"""What breaks kernels elsewhere: cancellation, overflow, NaN, misaligned memory."""

import pytest
import torch
from by_name import ByName
from effnet_fast.kernels import launchers as functions
from effnet_fast.kernels import runtime

from effnet_fast.types import Affine, Norm

launchers = ByName(functions)


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
