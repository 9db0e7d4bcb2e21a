"""BatchNorm's vector work, squeeze-and-excite, the elementwise passes."""

import pytest
import torch
from effnet_fast.kernels import runtime
from effnet_fast.kernels.runtime import INTERPRET

from effnet_fast import BackendError, dispatch, ops
from effnet_fast.backend import reference
from effnet_fast.backend.reference import ACTIVATIONS
from effnet_fast.tolerance import assert_accurate
from effnet_fast.types import BatchNormStats, Running

SHAPES = {"24": (3, 24, 9, 8), "17": (2, 17, 5, 3), "1x1 image": (70, 5, 1, 1)}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation(kit, act):
    z = kit.image(2, 11, 4, 5, scale=4.0)
    kit.check("affine_residual", z, kit.affine(11), act)
    kit.check(
        "batch_norm_reduce",
        z,
        kit.image(2, 11, 4, 5, scale=4.0),
        kit.norm(11),
        affine=kit.affine(11),
        act=act,
    )


@pytest.mark.parametrize("act", ["relu", "relu6", "hardswish", "hardsigmoid"])
def test_derivative_at_the_kinks(kit, act):
    """PyTorch's one-sided derivatives, exactly at -3, 0, 3 and 6."""
    z = torch.tensor([-3.0, 0.0, 3.0, 6.0], device=kit.device).reshape(1, 4, 1, 1)
    dy, ones, zeros = torch.ones_like(z), torch.ones(4, device=kit.device), torch.zeros(4, device=kit.device)
    norm, affine = reference.batch_norm.Norm(zeros, ones), reference.batch_norm.Affine(ones, zeros)
    kit.check("batch_norm_reduce", dy, z, norm, affine=affine, act=act)


def test_elementwise(kit, dtype, shape):
    n, c = shape[:2]
    z = kit.image(*shape)
    kit.check("affine_pool", z, kit.affine(c), "silu")
    kit.check("affine_pool", z, None)
    kit.check("affine_residual", z, kit.affine(c), "silu", kit.positive(n), kit.image(*shape))
    kit.check("affine_residual", z, None)
    kit.check("batch_norm_reduce", kit.image(*shape), z, kit.norm(c), row_scale=kit.positive(n))
    kit.check("batch_norm_reduce", kit.image(*shape), z, kit.norm(c), affine=kit.affine(c), act="silu")


def test_around_a_convolution_of_pytorch(kit, dtype, shape):
    c = shape[1]
    dy, z = kit.image(*shape), kit.image(*shape)
    kit.check("batch_norm_act_grad", dy, z, kit.grad(c), affine=kit.affine(c), act="silu")
    kit.check("batch_norm_act_grad", dy, z, kit.grad(c))
    kit.check("channel_stats", z)


def test_statistics_far_from_zero(kit):
    """Mean 1000, deviation 0.1: E[z^2] - E[z]^2 would have no digit left."""
    z = kit.image(3, 9, 40, 30, scale=0.1) + 1000
    from effnet_fast.kernels import launchers

    partials = launchers.channel_stats(z.contiguous(memory_format=torch.channels_last))
    stats = reference.batch_norm_finalize(partials, None, None, 0.0)
    # The means of the parts are rounded to 6e-5, which is in their merged variance.
    exact = z.double().var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(stats.var.double(), exact, rtol=1e-3, atol=0.0)
    torch.testing.assert_close(stats.mean.double(), z.double().mean(dim=(0, 2, 3)), rtol=2e-7, atol=0.0)


def partial_stats(kit, partials, c):
    count = torch.randint(1, 99, (partials, 1), device=kit.device).float().expand(partials, c)
    return torch.stack([count, kit.vector(partials, c), kit.positive(partials, c)], 1)


@pytest.mark.parametrize("partials, c", [(1, 5), (3, 24), (300, 40)])
@pytest.mark.parametrize("parameters", ["weight-bias", "none"])
def test_batch_norm(kit, partials, c, parameters):
    weight, bias = (kit.vector(c), kit.vector(c)) if parameters == "weight-bias" else (None, None)
    stats = kit.check("batch_norm_finalize", partial_stats(kit, partials, c), weight, bias, 1e-3)
    if weight is not None:
        half = weight.bfloat16(), bias.half()
        kit.check("batch_norm_finalize", partial_stats(kit, partials, c), *half, 1e-3)
        kit.check("batch_norm_fold", *half, kit.vector(c).half(), kit.positive(c).bfloat16(), 1e-5)
    kit.check("batch_norm_fold", weight, bias, kit.vector(c), kit.positive(c), 1e-5)
    for training in (True, False):
        kit.check("batch_norm_backward_finalize", kit.vector(partials, 2, c), 77, stats, training)


def test_gradients_of_batch_norm_in_the_dtype_of_its_parameters(kit, dtype):
    from effnet_fast.kernels import launchers

    stats = reference.batch_norm_finalize(partial_stats(kit, 3, 24), None, None, 1e-3)
    exact = BatchNormStats(stats.vectors.double())
    sums = kit.vector(5, 2, 3, 24)
    rows = reference.gate_batch_norm_sums(sums, None, None)
    for op, args in (
        ("batch_norm_backward_finalize", (rows,)),
        ("gate_batch_norm_finalize", (sums, None, None)),
    ):
        actual = getattr(launchers, op)(*args, 77, stats, True, dtype)
        baseline = getattr(reference, op)(*args, 77, stats, True, dtype)
        truth = getattr(reference, op)(*(None if a is None else a.double() for a in args), 77, exact, True)
        assert (actual.params.dtype, actual.grad.b.dtype) == (dtype, torch.float32)
        assert_accurate(op, actual.params, baseline.params, truth.params)
        assert_accurate(op, actual.grad.b, baseline.grad.b, truth.grad.b)


@pytest.mark.parametrize("batches, momentum", [(True, 0.1), (False, 0.3), (True, 1), (True, None)])
@pytest.mark.parametrize("layout", ["dense", "strided"])
def test_batch_norm_moves_running_statistics(kit, dtype, batches, momentum, layout):
    """More channels than one program takes: the count of batches goes up by one all the same."""
    from effnet_fast.kernels import launchers

    c, step = 40, 1 if layout == "dense" else 2
    partials, mean, var = (
        partial_stats(kit, 7, c),
        kit.vector(step * c).to(dtype),
        kit.positive(step * c).to(dtype),
    )

    def run(finalize, to, wide):
        count = torch.tensor(4, device=kit.device) if batches else None
        running = Running(mean.to(to, copy=True)[::step], var.to(to, copy=True)[::step], count, momentum)
        finalize(partials.to(wide), None, None, 1e-3, running, 77)
        return running

    actual = run(launchers.batch_norm_finalize, dtype, torch.float32)
    baseline = run(reference.batch_norm_finalize, dtype, torch.float32)
    truth = run(reference.batch_norm_finalize, torch.float64, torch.float64)
    assert_accurate("mean", actual.mean, baseline.mean, truth.mean, dtype)
    assert_accurate("var", actual.var, baseline.var, truth.var, dtype)
    assert not batches or actual.batches.item() == 5


@pytest.mark.parametrize("n, c, hidden", [(3, 24, 6), (2, 65, 17), (1, 8, 1), (35, 40, 70)])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("acts", [("silu", "sigmoid"), ("relu", "hardsigmoid")])
def test_squeeze_excite(kit, dtype, n, c, hidden, biases, acts):
    """Weights of any dtype; arithmetic, and therefore accuracy, in fp32."""
    layers = [kit.weight(hidden, c), kit.weight(hidden), kit.weight(c, hidden), kit.weight(c)]
    if not biases:
        layers[1] = layers[3] = None
    kit.dtype = torch.float32
    kit.check("squeeze_excite", kit.vector(n, c), *layers, *acts)
    kit.check("squeeze_excite_backward", kit.vector(n, c), kit.vector(n, c), *layers, *acts)
    kit.check("squeeze_excite_backward", kit.vector(n, 3, c), kit.vector(n, c), *layers, *acts, 35)


def test_squeeze_excite_too_wide_for_a_tile():
    """A hidden layer that no tile holds goes to the next backend, and to a user who chose Triton as an error."""
    device = torch.device("cpu" if INTERPRET else "cuda")
    for op in ("squeeze_excite", "squeeze_excite_backward"):
        assert runtime.can_run(op, device, torch.float32, hidden=1024) == (True, "")
        choice = dispatch.choose(op, device, torch.float32, ("triton", "reference"), hidden=1025)
        assert choice.backend == "reference"
        assert choice.passed_over == (
            ("triton", "its squeeze-and-excite has at most 1024 hidden units, not 1025"),
        )
    pooled = torch.randn(1, 2, device=device, requires_grad=True)
    w1, w2 = torch.randn(1025, 2, device=device), torch.randn(2, 1025, device=device)
    with dispatch.use_backend("triton", "reference"):
        ops.squeeze_excite(pooled, w1, None, w2, None).sum().backward()
    assert pooled.grad.isfinite().all()
    with (
        dispatch.use_backend("triton"),
        pytest.raises(BackendError, match="at most 1024 hidden units, not 1025"),
    ):
        ops.squeeze_excite(pooled, w1, None, w2, None)


def test_squeeze_excite_of_the_widest_tile(kit):
    layers = [kit.weight(1024, 9), kit.weight(1024), kit.weight(9, 1024), kit.weight(9)]
    kit.check("squeeze_excite", kit.vector(2, 9), *layers)
    kit.check("squeeze_excite_backward", kit.vector(2, 9), kit.vector(2, 9), *layers)


@pytest.mark.parametrize("gate, pool_grad", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(3, 300), (3, 4, 40), (70, 1, 24), (1, 1, 5)], ids=str)
def test_gate_batch_norm_sums(kit, shape, gate, pool_grad):
    """With and without parts to add; more rows than a block, and a single one."""
    n, c = shape[0], shape[-1]
    factors = kit.positive(n, c) if gate else None, kit.vector(n, c) if pool_grad else None
    # Not around zero, where rounding would be all there is to compare.
    sums = kit.vector(5, *shape) + 1
    kit.check("gate_batch_norm_sums", sums, *factors)
    stats = reference.batch_norm_finalize(partial_stats(kit, 3, c), kit.vector(c), None, 1e-3)
    for training in (True, False):
        kit.check("gate_batch_norm_finalize", sums, *factors, 77, stats, training)


WEIGHTS = {
    "block": (((40, 24), (9, 1, 960)), ((24, 1, 5, 5), (3, 25, 24)), ((16, 24, 1, 1), (1, 1, 384))),
    "no expansion": (None, ((7, 1, 3, 3), (40, 9, 7)), ((5, 7), (33, 1, 35))),
    "depthwise alone": (None, ((17, 1, 3, 3), (2, 1, 153)), None),
    "many": (((3, 2), (2, 1, 6)),) * 5,
    "one value": (((1, 1), (1, 1, 1)),) * 3,
    "nothing": (None, None, None),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_merge_weight_grads(kit, dtype, name):
    """Parts of different kinds, the taps of some before their channels, rounded to weights of different dtypes."""
    from effnet_fast.kernels import launchers

    rows = [None if case is None else kit.vector(*case[1]) for case in WEIGHTS[name]]
    weights = [None if case is None else kit.weight(*case[0]) for case in WEIGHTS[name]]
    if weights[-1] is not None:
        weights[-1] = weights[-1].float()
    actual = launchers.merge_weight_grads(rows, weights)
    baseline = reference.merge_weight_grads(rows, weights)
    wide = [None if w is None else w.double() for w in weights]
    truth = reference.merge_weight_grads([None if r is None else r.double() for r in rows], wide)
    for a, b, t, w in zip(actual, baseline, truth, weights, strict=True):
        assert (a is None) == (w is None)
        if a is not None:
            assert (a.shape, a.dtype) == (w.shape, w.dtype) and a.is_contiguous()
            assert_accurate("weight", a, b, t)
