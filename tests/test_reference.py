"""The oracle itself, against PyTorch's own operations and against autograd."""

import pytest
import torch
import torch.nn.functional as F

from effnet_fast.backend import reference
from effnet_fast.records import PointwiseIncoming, Source
from effnet_fast.types import Affine, BatchNormGrad, Norm

SMOOTH = ("none", "silu", "relu", "relu6", "hardswish", "sigmoid", "hardsigmoid")


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activation_derivative_is_autograds(name: str) -> None:
    n = torch.linspace(-8, 8, 1601, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(reference.activation(n, name).sum(), n)
    torch.testing.assert_close(reference.activation_grad(n.detach(), name), expected)


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activation_of_extreme_values(name: str) -> None:
    n = torch.tensor([-65504.0, -1e4, -89.0, -88.0, -20.0, 20.0, 88.0, 89.0, 1e4, 65504.0])
    assert reference.activation(n, name).isfinite().all()
    assert reference.activation_grad(n, name).isfinite().all()
    assert reference.activation(torch.tensor([float("nan")]), name).isnan().all()


def test_depthwise_is_conv2d_batch_norm_and_pool() -> None:
    x, weight = torch.randn(2, 5, 9, 7), torch.randn(5, 1, 3, 3)
    bn = torch.nn.BatchNorm2d(5).eval()
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    stats = reference.batch_norm_fold(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
    out = reference.depthwise(x, weight, 2, (1, 2, 0, 3), affine=stats.affine, act="silu", pool=True)
    expected = F.silu(bn(F.conv2d(F.pad(x, (1, 2, 0, 3)), weight, stride=2, groups=5)))
    torch.testing.assert_close(out.y, expected)
    torch.testing.assert_close(out.pooled, expected.mean(dim=(2, 3)))
    assert out.y.is_contiguous(memory_format=torch.channels_last)


def test_statistics_and_finalize_are_batch_norms() -> None:
    z = torch.randn(4, 6, 5, 3, dtype=torch.float64) * 3 + 7
    bn = torch.nn.BatchNorm2d(6, dtype=torch.float64)
    torch.nn.init.normal_(bn.weight)
    torch.nn.init.normal_(bn.bias)
    partials = torch.cat([reference.common.partial_stats(part) for part in z.split(1)])
    stats = reference.batch_norm_finalize(partials, bn.weight, bn.bias, bn.eps)
    torch.testing.assert_close(reference.affine_residual(z, stats.affine), bn(z))
    torch.testing.assert_close(stats.mean, z.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(stats.var, z.var(dim=(0, 2, 3), unbiased=False))


def test_statistics_survive_a_large_mean() -> None:
    z = (torch.randn(8, 3, 16, 16, dtype=torch.float64) * 1e-2 + 1e3).float()
    truth = z.double().var(dim=(0, 2, 3), unbiased=False)
    partials = torch.cat([reference.common.partial_stats(part) for part in z.split(2)])
    stats = reference.batch_norm_finalize(partials, None, None, 1e-5)
    torch.testing.assert_close(stats.var.double(), truth, rtol=1e-2, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_backward_is_autograds(training: bool) -> None:
    z = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    bn = torch.nn.BatchNorm2d(4, dtype=torch.float64).train(training)
    torch.nn.init.normal_(bn.weight)
    with torch.no_grad():
        if training:
            partials = reference.common.partial_stats(z)
            stats = reference.batch_norm_finalize(partials, bn.weight, bn.bias, bn.eps)
        else:
            stats = reference.batch_norm_fold(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
    y = F.silu(bn(z))
    dy = torch.randn_like(y)
    dz, dweight, dbias = torch.autograd.grad(y, (z, bn.weight, bn.bias), dy)
    with torch.no_grad():
        sums = reference.batch_norm_reduce(dy, z, stats.norm, affine=stats.affine, act="silu")
        out = reference.batch_norm_backward_finalize(sums, 3 * 5 * 2, stats, training)
        g = dy * reference.activation_grad(reference.common.apply_affine(z, stats.affine), "silu")
        torch.testing.assert_close(out.params, torch.stack([dbias, dweight]))
        torch.testing.assert_close(reference.common.batch_norm_input_grad(g, z, out.grad), dz)


def test_squeeze_excite_backward_is_autograds() -> None:
    shapes = ((3, 8), (2, 8), (2,), (8, 2), (8,))
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    gate = reference.squeeze_excite(*tensors, "hardswish", "hardsigmoid")
    dgate = torch.randn_like(gate)
    expected = torch.autograd.grad(gate, tensors, dgate)
    with torch.no_grad():
        got = reference.squeeze_excite_backward(dgate, *tensors, "hardswish", "hardsigmoid")
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_low_precision_is_rounded_once_at_the_store() -> None:
    x = torch.randn(2, 16, 6, 6).bfloat16()
    weight = torch.randn(8, 16).bfloat16()
    out = reference.pointwise(x, weight, act="silu")
    exact = F.silu(F.conv2d(x.double(), weight.double()[:, :, None, None]))
    assert out.y.dtype == torch.bfloat16
    torch.testing.assert_close(out.y.double(), exact, rtol=2**-8, atol=1e-6)


def test_empty_batch() -> None:
    x = torch.empty(0, 4, 5, 5)
    out = reference.depthwise(x, torch.randn(4, 1, 3, 3), 1, (1, 1, 1, 1), pool=True, stats=True)
    assert out.y.shape == (0, 4, 5, 5) and out.pooled.shape == (0, 4)
    grad = BatchNormGrad(*(torch.zeros(4) for _ in range(4)))
    dz = BatchNormGrad(*(torch.zeros(3) for _ in range(4)))
    back = reference.pointwise_backward(
        PointwiseIncoming(torch.empty(0, 3, 5, 5), torch.empty(0, 3, 5, 5), dz),
        Source(x, Affine(grad.a, grad.b), norm=Norm(grad.mean, grad.c)),
        torch.randn(3, 4),
    )
    assert back.dx.shape == x.shape and back.dweight.eq(0).all() and back.sums.shape == (5, 0, 4)
