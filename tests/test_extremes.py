"""Values at the ends of the dtypes, degenerate maps, bad images: what PyTorch gives, and no image harms another."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import make_network
from op_cases import NEIGHBOURS, displaced
from patched_blocks import BLOCKS, shake_batch_norms, torchvision_block
from torch import Tensor, nn

import effnet_fast
from effnet_fast import dispatch, ops, tolerance, use_backend
from effnet_fast.backend import native, reference
from effnet_fast.backend.cpu import engine
from effnet_fast.backend.network import Block, Conv, Network, SqueezeExcite
from effnet_fast.backend.reference import ACTIVATIONS
from effnet_fast.backend.reference.network import ReferenceProgram
from effnet_fast.ops.mbconv_types import BatchNorm, Settings, Weights
from effnet_fast.types import Affine, Norm

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
INF, NAN = float("inf"), float("nan")


def step(model: nn.Module, x: Tensor, dy: Tensor | None = None) -> dict[str, Tensor]:
    """Output, gradients and buffers of one step."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    y = model(x)
    dy = torch.ones_like(y) if dy is None else dy.to(y.dtype)
    y.backward(dy)
    grads = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "grad x": x.grad, **grads, **dict(model.named_buffers())}


def assert_like_stock(block: nn.Module, x: Tensor) -> None:
    """The rule of effnet_fast.tolerance for everything a step gives.

    Stock runs at the input and some roundings away: of a few values per channel one run may be lucky.
    """
    patched = effnet_fast.patch(copy.deepcopy(block))
    torch.manual_seed(3)
    dy = torch.randn(copy.deepcopy(block)(x).shape)
    stock, truths = [], []
    for roundings in (0.0, *NEIGHBOURS):
        near = displaced(x.dtype, roundings)(x).to(x.dtype)
        stock.append(step(copy.deepcopy(block), near, dy))
        truths.append(step(copy.deepcopy(block).double(), near.double(), dy))
    for name, value in step(patched, x, dy).items():
        if value.is_floating_point():
            # A running variance that fp32 does not hold is infinite in stock models.
            exactly = [truth[name].to(value.dtype).double() for truth in truths]
            exact = exactly[0]
            limit = max(
                tolerance.allowed(run[name], there, value.dtype)
                for run, there in zip(stock, exactly, strict=True)
            )
            # Where a variance is zero both gradients are the same rounding of nothing: the last digit decides no more.
            assert tolerance.error(value, exact) <= limit * (1 + 1e-6), name


LARGE = ["own", "torchvision-no-expand", "torchvision-stride2", "lite-dynamic", "timm-separable"]


@pytest.mark.parametrize("scale", [1e10, 1e14, 1e17, 1e20, 1e25, 1e30])
@pytest.mark.parametrize("name", LARGE)
def test_large_activations_in_training(name: str, scale: float, backend: str) -> None:
    torch.manual_seed(1)
    assert_like_stock(BLOCKS[name]().train(), scale * torch.randn(3, 8, 9, 7))


@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_large_activations_in_stem_and_bf16(scale: float) -> None:
    torch.manual_seed(1)
    layer = shake_batch_norms(effnet_fast.nn.ConvNormAct(8, 8, 3, stride=2))
    x = scale * torch.randn(3, 8, 9, 7)
    assert_like_stock(nn.Sequential(layer, torchvision_block(p=0.0)).train(), x)
    block = torchvision_block(p=0.0).to(BF16).train()
    patched = effnet_fast.patch(copy.deepcopy(block))
    for a, b in zip(step(block, x.to(BF16)).values(), step(patched, x.to(BF16)).values(), strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


def test_a_refused_variance_moves_nothing_twice() -> None:
    """A projection of enormous weights: the statistics before it were good, and move once."""
    block = torchvision_block(p=0.0).train()
    with torch.no_grad():
        block.block[-1][0].weight.mul_(1e25)
    patched, x = effnet_fast.patch(copy.deepcopy(block)), torch.randn(3, 8, 9, 7)
    expected, got = step(block, x), step(patched, x)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], msg=lambda m, name=name: f"{name}: {m}")
    assert all(int(t) == 1 for name, t in got.items() if name.endswith("num_batches_tracked"))


def weights_for(channels: int, training: bool, act: str = "relu6") -> tuple[Weights, Settings]:
    def norm(count: int) -> BatchNorm:
        vectors = (torch.rand(count) + 0.5, torch.randn(count), torch.randn(count), torch.rand(count) + 0.5)
        return BatchNorm(*vectors, 1e-3, training)

    wide = 3 * channels
    weights = Weights(
        torch.randn(wide, channels), norm(wide), torch.randn(wide, 1, 3, 3), norm(wide), torch.randn(channels, wide),
        norm(channels), None, None, None, None,
    )  # fmt: skip
    return weights, Settings(1, (1, 1, 1, 1), act, act, "silu", "sigmoid", True)


@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_ops_stay_finite(scale: float, backend: str) -> None:
    """Called without modules to fall back on: a variance of infinity makes a channel its bias, as on CUDA in PyTorch."""
    weights, settings = weights_for(8, training=True)
    leaves = [t.requires_grad_() for t in (weights.expand, weights.depthwise, weights.project)]
    x = (scale * torch.randn(2, 8, 70, 40)).requires_grad_()
    out = ops.mbconv(x, weights, settings)
    out.y.sum().backward()
    for t in (out.y, x.grad, *(leaf.grad for leaf in leaves)):
        assert t.isfinite().all()
    assert not out.expand_stats.isnan().any()
    for partials in (
        dispatch.select("channel_stats", x)(x.detach()),
        dispatch.select("depthwise", x)(x.detach(), weights.depthwise[:8], 1, (1, 1, 1, 1), stats=True).stats,
        dispatch.select("pointwise", x)(x.detach(), weights.expand, stats=True).stats,
    ):
        assert not partials.isnan().any()


SPECIAL = [NAN, INF, -INF, 0.0, -0.0, 3.0, -3.0, 6.0, 1e4, -1e4, 0.5, 65504.0, 3e38, -3e38]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_derivatives_of_special_values(act: str, backend: str) -> None:
    """NaN included: relu and relu6 let the gradient pass there, as PyTorch's single-value and CUDA loops do."""
    for value in SPECIAL:
        n = torch.tensor([value], requires_grad=True)
        y = reference.activation(n, act)
        (truth,) = torch.autograd.grad(y, n)
        z = torch.full((2, 20, 3, 5), value)
        one, zero = torch.ones(20), torch.zeros(20)
        got = dispatch.select("batch_norm_act_grad", z)(
            torch.ones_like(z), z, reference.batch_norm_backward_finalize(
                torch.zeros(1, 2, 20), 1, reference.batch_norm_fold(None, None, zero, one, 0.0), False
            ).grad._replace(b=zero, c=zero), affine=Affine(one, zero), act=act,
        )  # fmt: skip
        if value != value or abs(value) == INF:
            # 0 * (z - mean) is NaN there, as in PyTorch's backward of batch statistics: the sums tell.
            g = dispatch.select("batch_norm_reduce", z)(
                torch.ones_like(z), z, Norm(zero, one), affine=Affine(one, zero), act=act
            ).sum(0)[0] / 30  # fmt: skip
            torch.testing.assert_close(g, truth.expand(20), equal_nan=True, rtol=1e-5, atol=1e-6)
        else:
            torch.testing.assert_close(got, truth.expand_as(got), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_nan_through_frozen_layers(act: type[nn.Module], backend: str) -> None:
    """One pixel is NaN: the sums over all pixels and the other pixels' gradients are PyTorch's."""
    torch.manual_seed(5)
    layer = shake_batch_norms(effnet_fast.nn.ConvNormAct(4, 8, 1)).eval()
    layer[2] = act()
    patched = effnet_fast.patch(nn.Sequential(copy.deepcopy(layer), torchvision_block().eval()))[0]
    x = torch.randn(1, 4, 3, 3)
    x[0, 1, 1, 2] = NAN
    expected, got = step(layer, x), step(patched, x)
    for found in (expected, got):
        found["grad x"][0, :, 1, 2] = 0.0
    for name in ("y", "grad x", "grad 1.bias"):
        torch.testing.assert_close(got[name], expected[name], equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 3e38])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_one_bad_image_leaves_the_others_alone(dtype: torch.dtype, bad: float, backend: str) -> None:
    torch.manual_seed(6)
    model, x = make_network("own").to(dtype), torch.randn(5, 3, 40, 33).to(dtype)
    worse = x.clone()
    worse[2, :, 5:9, 7] = bad
    good = [0, 1, 3, 4]
    with torch.no_grad():
        for run in (model, effnet_fast.optimize(model, x, dtype=dtype)):
            clean, spoilt = run(x), run(worse)
            assert clean.isfinite().all() and torch.equal(spoilt[good], clean[good])
            assert bad == 3e38 or not spoilt[2].isfinite().any() or not torch.equal(spoilt[2], clean[2])


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("act", ["silu", "hardswish", "relu6"])
def test_large_preactivations_in_a_program(act: str, dtype: torch.dtype) -> None:
    """SiLU at +-1e4 is x and 0, wherever the engine applies it."""
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)
    torch.manual_seed(8)

    def conv(out: int, inputs: int, kernel: int, **options) -> Conv:
        bias = torch.tensor([1e4, -1e4, 0.0, 100.0, -100.0]).repeat(out)[:out]
        return Conv(torch.randn(out, inputs, kernel, kernel) / 8, bias, **options)

    gate = SqueezeExcite(torch.randn(6, 40) / 1e4, torch.randn(6), torch.randn(40, 6), torch.randn(40), act)
    block = Block(
        conv(40, 24, 1, act=act), conv(40, 1, 3, groups=40, padding=(1, 1, 1, 1), act=act), gate, conv(24, 40, 1), True
    )  # fmt: skip
    network = Network(
        conv(24, 3, 3, act=act), (block,), conv(32, 24, 1, act=act), (torch.randn(7, 32), torch.randn(7))
    )
    x = torch.randn(2, 3, 12, 9)
    got = engine.compile_network(network, dtype).run(x)
    truth, baseline = ReferenceProgram(network, FP64).run(x), ReferenceProgram(network, dtype).run(x)
    tolerance.assert_accurate("logits", got, baseline, truth, dtype)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("name", ["own", "lite-dynamic", "timm-hardswish"])
def test_variance_near_zero(name: str, spread: float) -> None:
    torch.manual_seed(9)
    block = BLOCKS[name]().train()
    for module in block.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    if hasattr(block, "drop_path"):
        block.drop_path = nn.Identity()
    assert_like_stock(block, 3.0 + spread * torch.randn(2, 8, 9, 7))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_million_values_a_channel(dtype: torch.dtype, backend: str) -> None:
    """Mean 1e3, deviation 1: statistics of 2^20 values to fp32's last digits, whoever sums them."""
    torch.manual_seed(10)
    x = torch.randn(1, 8, 1024, 1024).add_(1e3).to(dtype).contiguous(memory_format=torch.channels_last)
    one = torch.ones(8, 1, 3, 3, dtype=dtype) * torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0]).view(3, 3).to(dtype)
    results = {
        "channel_stats": dispatch.select("channel_stats", x)(x),
        "depthwise": dispatch.select("depthwise", x)(x, one, 1, (1, 1, 1, 1), stats=True).stats,
        "pointwise": dispatch.select("pointwise", x)(x, torch.eye(8, dtype=dtype), stats=True).stats,
    }
    mean, var = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    for name, partials in results.items():
        vectors = dispatch.select("batch_norm_finalize", x)(partials, None, None, 0.0).vectors
        assert ((vectors[0] - mean).abs() / mean).max() < 1e-6, name
        assert ((vectors[1] - var).abs() / var).max() < 1e-5, name
    assert int(partials[:, 0].double().sum(0)[0]) == 2**20


@pytest.mark.parametrize("height, width", [(1, 1), (1, 2), (2, 1), (2, 3), (1, 9)])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (5, 1), (5, 2), (7, 1), (7, 2)])
def test_maps_smaller_than_the_kernel(kernel: int, stride: int, height: int, width: int) -> None:
    torch.manual_seed(11)
    block = torchvision_block(kernel=kernel, stride=stride, p=0.0).train()
    assert_like_stock(block, torch.randn(5, 8, height, width))
    patched, x = effnet_fast.patch(copy.deepcopy(block)).eval(), torch.randn(5, 8, height, width)
    with torch.no_grad():
        stock = block.eval()(x)
        tolerance.assert_accurate("eval", patched(x), stock, copy.deepcopy(block).double()(x.double()), FP32)


@pytest.mark.parametrize("value", [65504.0, 8e3, 1e3, 6e-5, 6e-8])
def test_the_ends_of_fp16(value: float) -> None:
    """On the reference, the one backend that computes fp16 here: finite and right where PyTorch's modules are."""
    torch.manual_seed(12)
    block, x = torchvision_block(p=0.0).eval().half(), (value * torch.randn(2, 8, 9, 7).sign()).half()
    with torch.no_grad():
        stock, truth = block(x), copy.deepcopy(block).double()(x.double())
        with use_backend("reference"):
            got = effnet_fast.patch(block)(x)
    finite = stock.isfinite()
    assert finite.any() == (value < 3e4) and got[finite].isfinite().all()
    tolerance.assert_accurate("y", got[finite], stock[finite], truth[finite])


def test_silu_far_out() -> None:
    for value in (1e4, -1e4, 88.0, -88.0, -104.0, 1e30, -1e30):
        x = torch.full((1, 24, 2, 3), value)
        got = dispatch.select("affine_residual", x)(x, None, "silu")
        torch.testing.assert_close(got, F.silu(x), rtol=1e-6, atol=1e-35)
