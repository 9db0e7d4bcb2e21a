"""Compound scaling against the paper's numbers, rounding against torchvision's network table."""

import math
import warnings

import pytest

from effnet_fast import models
from effnet_fast.errors import EffnetFastError


@pytest.mark.parametrize(
    ("phi", "flops", "input_size"), [(0, 1.00, 224), (1, 1.92, 258), (2, 3.69, 296), (3, 7.08, 341)]
)
def test_paper_coefficients(phi, flops, input_size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaling = models.compound_scaling(phi)
    assert scaling.flops == pytest.approx(flops, abs=0.005)
    assert scaling.input_size == input_size
    assert scaling.depth == pytest.approx(1.2**phi)
    assert scaling.width == pytest.approx(1.1**phi)
    assert scaling.resolution == pytest.approx(1.15**phi)
    assert scaling._fields == ("depth", "width", "resolution", "input_size", "flops")


def test_cost_is_depth_times_width_and_resolution_squared():
    with pytest.warns(UserWarning, match="not about 2"):
        d, w, r, size, flops = models.compound_scaling(1.5, alpha=1.3, beta=1.05, gamma=1.4)
    assert flops == pytest.approx(d * w * w * r * r)
    assert flops == pytest.approx((1.3 * 1.05**2 * 1.4**2) ** 1.5)
    assert size == round(224 * 1.4**1.5)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize("value", [1, 1.0, 0.9, 0, -2.0, math.nan, math.inf, "1.2", None, True])
def test_refuses_bases_that_do_not_grow(name, value):
    with pytest.raises(EffnetFastError, match=rf"^compound_scaling: {name}: expected .*got") as raised:
        models.compound_scaling(1, **{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("phi", [-1, -0.5, math.nan, math.inf, "1", None])
def test_refuses_phi(phi):
    with pytest.raises(EffnetFastError, match=r"^compound_scaling: phi: expected .*got"):
        models.compound_scaling(phi)


@pytest.mark.parametrize("phi", [1500.0, 1e5, 1e300])
def test_overflow_is_an_error_not_infinity(phi):
    with pytest.raises(EffnetFastError, match="too large"):
        models.compound_scaling(phi)


@pytest.mark.parametrize(("alpha", "product"), [(1.1, "1.76"), (1.5, "2.4")])
def test_warns_far_from_doubling(alpha, product):
    with pytest.warns(UserWarning, match=rf"= {product}, not about 2"):
        models.compound_scaling(1, alpha=alpha)


def test_round_filters():
    # Rounds to the nearest multiple of 8, but never loses more than 10 %.
    cases = {(32, 1.1): 32, (16, 1.1): 16, (40, 1.4): 56, (112, 1.4): 160, (320, 2.0): 640, (24, 1.2): 32}
    assert {case: models.round_filters(*case) for case in cases} == cases
    assert models.round_filters(3) == 8
    for channels in range(8, 700):
        rounded = models.round_filters(channels, 1.3)
        assert rounded % 8 == 0 and 0.9 * 1.3 * channels <= rounded <= 1.3 * channels + 8


def test_round_repeats_rounds_up():
    assert [models.round_repeats(n, 1.1) for n in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert [models.round_repeats(n, 3.1) for n in (1, 2, 3, 4)] == [4, 7, 10, 13]
    assert models.round_repeats(4) == 4


@pytest.mark.parametrize("name", models.list_models())
def test_any_member_equals_the_variant(name):
    variant = models.VARIANTS[name]
    stages = models.scaled_stages(variant.width_mult, variant.depth_mult)
    assert [s.in_channels for s in stages[1:]] == [s.out_channels for s in stages[:-1]]
    expected_blocks = {"b0": 16, "b1": 23, "b2": 23, "b3": 26, "b4": 32, "b5": 39, "b6": 45, "b7": 55}
    assert sum(s.repeats for s in stages) == expected_blocks[name]


@pytest.mark.parametrize("argument", ["width_mult", "depth_mult"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "2"])
def test_efficientnet_refuses_multipliers(argument, value):
    with pytest.raises(EffnetFastError, match=rf"^efficientnet: {argument}: expected a positive number, got"):
        models.efficientnet(**{argument: value})
