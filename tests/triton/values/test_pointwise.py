"""The 1x1 convolution: every prologue and epilogue, forward and backward, odd sizes."""

import pytest
import torch

# n, cin, cout, height, width: none a multiple of a tile; 24 and 40 are multiples of 8 only, 17 and 13 of nothing.
SHAPES = {"24-40": (2, 24, 40, 9, 8), "17-13": (3, 17, 13, 5, 3), "1x1 image": (70, 16, 24, 1, 1)}


def prologue(kit, name, n, c):
    full = {"in_affine": kit.affine(c), "in_act": "silu", "gate": kit.positive(n, c)}
    return {
        "none": {},
        "affine-act-gate": full,
        "affine-act": {"in_affine": full["in_affine"], "in_act": "relu6"},
        "act": {"in_act": "hardswish"},
        "gate": {"gate": full["gate"]},
    }[name]


@pytest.mark.parametrize("before", ["none", "affine-act-gate", "affine-act", "act", "gate"])
@pytest.mark.parametrize("after", ["raw-stats", "affine-act-pool", "affine-scale-residual", "stats-pool"])
def test_forward(kit, dtype, shape, before, after):
    n, cin, cout, h, w = shape
    epilogue = {
        "raw-stats": {"stats": True},
        "stats-pool": {"stats": True, "pool": True},
        "affine-act-pool": {"affine": kit.affine(cout), "act": "silu", "pool": True},
        "affine-scale-residual": {
            "affine": kit.affine(cout),
            "row_scale": kit.positive(n),
            "residual": kit.image(n, cout, h, w),
        },
    }[after]
    kit.check(
        "pointwise",
        kit.image(n, cin, h, w),
        kit.weight(cout, cin),
        **prologue(kit, before, n, cin),
        **epilogue,
    )


@pytest.mark.parametrize("needs", ["both", "dx", "dw"])
@pytest.mark.parametrize("before", ["none", "affine-act-gate", "affine-act"])
@pytest.mark.parametrize("after", ["plain", "batch-norm", "batch-norm-drop-path"])
def test_backward(kit, dtype, shape, needs, before, after):
    n, cin, cout, h, w = shape
    options = prologue(kit, before, n, cin)
    if "in_affine" in options:
        options["in_norm"] = kit.norm(cin)
    else:
        options["residual_grad"] = kit.image(n, cin, h, w)
    if after != "plain":
        options |= {"z": kit.image(n, cout, h, w), "grad": kit.grad(cout)}
    if after == "batch-norm-drop-path":
        options["row_scale"] = kit.positive(n)
    kit.check(
        "pointwise_backward",
        kit.image(n, cout, h, w),
        kit.image(n, cin, h, w),
        kit.weight(cout, cin),
        **options,
        need_dx=needs != "dw",
        need_dw=needs != "dx",
    )


def test_wide_output_takes_two_kernels(kit, dtype):
    """More output channels than a tile of the merged kernel holds."""
    options = {
        "in_affine": kit.affine(9),
        "in_act": "silu",
        "in_norm": kit.norm(9),
        "gate": kit.positive(2, 9),
    }
    dy, x = kit.image(2, 261, 3, 5), kit.image(2, 9, 3, 5)
    kit.check(
        "pointwise_backward",
        dy,
        x,
        kit.weight(261, 9),
        z=kit.image(2, 261, 3, 5),
        grad=kit.grad(261),
        **options,
    )


def test_inputs_stay_as_they_are(kit, dtype):
    """The backward writes into none of its inputs."""
    n, cin, cout, h, w = SHAPES["24-40"]
    tensors = [
        kit.image(n, cout, h, w),
        kit.image(n, cin, h, w),
        kit.weight(cout, cin),
        kit.image(n, cin, h, w),
    ]
    before = [t.clone() for t in tensors]
    kit.check("pointwise_backward", *tensors[:3], residual_grad=tensors[3])
    assert all(t.equal(b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("needs", ["both", "dw"])
def test_backward_in_parts(kit, dtype, needs):
    """What the block merges later: the parts of the weight's gradient and of the sums."""
    from by_name import ByName
    from effnet_fast.kernels import launchers as functions

    launchers = ByName(functions)

    n, cin, cout, h, w = 2, 24, 40, 9, 8
    images = kit.image(n, cout, h, w), kit.image(n, cin, h, w)
    weight, options = (
        kit.weight(cout, cin),
        prologue(kit, "affine-act-gate", n, cin) | {"in_norm": kit.norm(cin)},
    )
    need_dx = needs == "both"
    whole = launchers.pointwise_backward(*images, weight, **options, need_dx=need_dx)
    parts = launchers.pointwise_backward(*images, weight, **options, need_dx=need_dx, parts=True)
    (merged,) = launchers.merge_weight_grads([parts.dweight], [weight.float()])
    assert merged.equal(whole.dweight)
    assert parts.sums.dim() == 4 and parts.sums.shape[1] == n
    torch.testing.assert_close(parts.sums.sum(2), whole.sums)
