"""The depthwise convolution: kernel sizes, strides, four-sided padding, every fusion, forward and backward."""

import pytest

# n, channels, height, width, kernel, stride, (left, right, top, bottom)
SHAPES = {
    "3x3 stride 2, odd padding": (3, 17, 7, 5, 3, 2, (0, 1, 2, 1)),
    "5x5": (2, 24, 5, 6, 5, 1, (2, 2, 2, 2)),
    "3x3": (2, 24, 6, 7, 3, 1, (1, 1, 1, 1)),
    "5x5 stride 2": (2, 40, 9, 6, 5, 2, (2, 2, 2, 2)),
    "5x5, image smaller than the kernel": (2, 8, 3, 2, 5, 1, (2, 3, 2, 1)),
    "7x7 stride 2, no padding": (1, 9, 8, 9, 7, 2, (0, 0, 0, 0)),
    "2x2": (1, 5, 4, 4, 2, 1, (1, 0, 0, 1)),
}


@pytest.mark.parametrize("fusion", ["plain", "prologue-stats", "epilogue-pool", "everything"])
def test_forward(kit, dtype, shape, fusion):
    n, c, h, w, k, stride, padding = shape
    options = {
        "plain": {},
        "prologue-stats": {"in_affine": kit.affine(c), "in_act": "silu", "stats": True},
        "epilogue-pool": {"affine": kit.affine(c), "act": "silu", "pool": True},
        "everything": {
            "in_affine": kit.affine(c),
            "in_act": "relu",
            "affine": kit.affine(c),
            "act": "hardswish",
            "pool": True,
            "stats": True,
        },
    }[fusion]
    kit.check("depthwise", kit.image(n, c, h, w), kit.weight(c, 1, k, k), stride, padding, **options)


@pytest.mark.parametrize("fusion", ["plain", "residual", "batch-norm", "gate", "everything"])
def test_backward(kit, dtype, shape, fusion):
    n, c, h, w, k, stride, padding = shape
    left, right, top, bottom = padding
    ho, wo = (h + top + bottom - k) // stride + 1, (w + left + right - k) // stride + 1
    norm = {"z": kit.image(n, c, ho, wo), "affine": kit.affine(c), "act": "silu", "grad": kit.grad(c)}
    squeezed = {"gate": kit.positive(n, c), "pool_grad": kit.vector(n, c)}
    options = {
        "plain": {},
        "residual": {"residual_grad": kit.image(n, c, h, w), "in_act": "none"},
        "batch-norm": norm,
        "gate": {**squeezed, "z": norm["z"], "affine": norm["affine"], "act": "relu6"},
        "everything": {
            **norm,
            **squeezed,
            "in_affine": kit.affine(c),
            "in_act": "silu",
            "in_norm": kit.norm(c),
        },
    }[fusion]
    kit.check(
        "depthwise_backward",
        kit.image(n, c, ho, wo),
        kit.image(n, c, h, w),
        kit.weight(c, 1, k, k),
        stride,
        padding,
        **options,
    )


@pytest.mark.parametrize("need_dx, need_dw", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_for(kit, need_dx, need_dw):
    n, c, h, w, k, stride, padding = SHAPES["3x3"]
    out = kit.check(
        "depthwise_backward",
        kit.image(n, c, h, w),
        kit.image(n, c, h, w),
        kit.weight(c, 1, k, k),
        stride,
        padding,
        need_dx=need_dx,
        need_dw=need_dw,
    )
    assert (out.dx is not None, out.dweight is not None) == (need_dx, need_dw)
