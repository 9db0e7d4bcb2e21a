"""Every configuration that a kernel may be launched with."""

import pytest
import torch
from effnet_fast.kernels import configs, launchers, tuning

from effnet_fast.backend import reference


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
