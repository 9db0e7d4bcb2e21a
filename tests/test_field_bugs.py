"""Bugs of comparable packages, each as a test named after its kind; docs/reliability.md says which report is whose.

Most kinds have their tests beside what they are about; here is the rest, on every backend where the bug could be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from patched_blocks import pair
from torch import Tensor, nn

import effnet_fast
from effnet_fast import ops, use_backend
from effnet_fast.backend import native
from effnet_fast.tolerance import assert_accurate
from effnet_fast.types import same_padding

BACKENDS = [
    "reference",
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not native.available("_ops")[0], reason="needs the native library")
    ),
]
backends = pytest.mark.parametrize("backend", BACKENDS)
libraries = pytest.mark.parametrize("library", tiny_models.TINY)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# --- normalization ---


def _torchs_converter(model: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return]


def _timms_converter(model: nn.Module) -> nn.Module:
    return pytest.importorskip("timm.layers").convert_sync_batchnorm(model)  # type: ignore[no-any-return]


@libraries
@pytest.mark.parametrize("convert", [_torchs_converter, _timms_converter])
@pytest.mark.parametrize("patched_first", [True, False], ids=["patched-first", "converted-first"])
def test_both_sync_batch_norm_converters(
    library: str, convert: Callable[[nn.Module], nn.Module], patched_first: bool
) -> None:
    """torch's converter loses the activation in timm's BatchNormAct2d: then patched must lose it as well."""
    stock = convert(tiny_models.make(library)).eval()
    model = tiny_models.make(library)
    patched = convert(effnet_fast.patch(model)) if patched_first else effnet_fast.patch(convert(model))
    patched.eval()
    x = torch.randn(2, 3, 19, 24)
    with torch.no_grad():
        close(patched(x), stock(x))


@backends
@pytest.mark.parametrize("channels", [24, 40, 65, 176, 304, 512])
def test_statistics_of_uneven_channels_on_large_maps(backend: str, channels: int) -> None:
    """A Welford in channels_last that was wrong where C is no power of two and H * W is large."""
    z = torch.randn(1, channels, 61, 83) * 0.1 + torch.arange(channels)[:, None, None]
    weight = torch.zeros(channels, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    with use_backend(backend):
        got = ops.depthwise(z, weight, 1, 1, stats=True).stats
    assert got is not None
    wide = z.double()
    close(got[0].double(), wide.mean((0, 2, 3)), 1e-6)
    torch.testing.assert_close(got[1].double(), wide.var((0, 2, 3), correction=0), rtol=1e-3, atol=0)


@backends
def test_every_channel_of_wide_layers(backend: str) -> None:
    """A launch that served only the first 64 channels: B7 has 3840, each judged by its own scale."""
    channels = 3840
    scales = torch.logspace(-3, 3, channels)
    x = torch.randn(1, channels, 3, 5)
    stencil = torch.randn(channels, 1, 3, 3) * scales[:, None, None, None]
    matrix = torch.randn(channels, 16) * scales[:, None]
    with use_backend(backend):
        d, p = ops.depthwise(x, stencil, 1, 1).y, ops.pointwise(x[:, :16], matrix).y
    for got, want in (
        (d, F.conv2d(x.double(), stencil.double(), padding=1, groups=channels)),
        (p, F.conv2d(x[:, :16].double(), matrix.double()[:, :, None, None])),
    ):
        close(got.double() / scales[:, None, None], want / scales[:, None, None], 1e-5)


@backends
def test_running_statistics_are_moved_unseen_by_autograd(backend: str) -> None:
    """As native batch_norm: PyTorch's own forward may have kept them for its backward."""
    stock, patched, x = pair("torchvision", torch.float32)
    gradients = []
    for block in (stock, patched):
        block.eval()
        leaf = x.clone().requires_grad_()
        handle = block.block[0].register_forward_hook(lambda *_: None)
        first = block(leaf)  # a hook inside: PyTorch's modules, frozen statistics
        handle.remove()
        block.train()
        torch.manual_seed(3)
        with use_backend(backend):
            second = block(leaf.detach())
        (first.sum() + second.sum()).backward()
        gradients.append(leaf.grad)
    close(gradients[1], gradients[0])


@backends
def test_two_forwards_before_a_backward(backend: str) -> None:
    stock, patched, x = pair("torchvision", torch.float32)
    results = []
    for block in (stock, patched):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        with use_backend(backend):
            (block(leaf) + block(2 * leaf)).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in block.parameters()), *block.buffers()])
    for got, want in zip(*reversed(results), strict=True):
        assert got is not None and want is not None
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item() + 1e-6)


# --- numbers ---


@pytest.mark.parametrize("name", [f"b{i}" for i in range(8)])
def test_fp16_autocast_training_stays_finite(name: str) -> None:
    """Gradients NaN under a finite loss: the fused network bears the loss scales that PyTorch's modules bear."""
    torch.manual_seed(0)
    model = getattr(effnet_fast, name)(num_classes=10).train()
    x, label = torch.randn(4, 3, 32, 48), torch.tensor([1, 2, 3, 4])

    def finite(network: nn.Module, scale: float) -> bool:
        network.zero_grad()
        torch.manual_seed(1)
        with use_backend("reference"), torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(network(x).float(), label)
        assert loss.isfinite()
        (loss * scale).backward()
        return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())

    stock = effnet_fast.unpatch(copy.deepcopy(model))
    assert finite(model, 2**5)
    assert finite(model, 2**10) or not finite(stock, 2**10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_squeeze_and_excite_does_not_overflow(dtype: torch.dtype) -> None:
    """The sum over an image is beyond fp16's 65504, the mean is not."""
    x = torch.full((1, 4, 64, 64), 100.0, dtype=dtype)
    stencil = torch.zeros(4, 1, 3, 3, dtype=dtype)
    stencil[:, :, 1, 1] = 1
    with use_backend("reference"):
        pooled = ops.depthwise(x, stencil, 1, 1, pool=True).pooled
    assert pooled is not None
    close(pooled, torch.full((1, 4), 100.0), 1e-3)


@backends
def test_a_batch_of_70000_pixels(backend: str) -> None:
    """More images than a GPU's grid has blocks in y and z."""
    n = 70_000
    x, stencil, matrix = torch.randn(n, 3, 1, 1), torch.randn(3, 1, 3, 3), torch.randn(5, 3)
    pooled, w1, w2 = torch.randn(n, 4), torch.randn(2, 4), torch.randn(4, 2)
    with use_backend(backend):
        close(ops.depthwise(x, stencil, 1, 1).y, F.conv2d(x, stencil, padding=1, groups=3))
        close(ops.pointwise(x, matrix).y, F.conv2d(x, matrix[:, :, None, None]))
        gate = ops.squeeze_excite(pooled, w1, None, w2, None)
    close(gate, torch.sigmoid(F.silu(pooled @ w1.T) @ w2.T))


# --- sizes ---

SIZES = [(33, 20), (16, 41), (33, 20), (8, 8), (64, 9), (33, 20)]


@libraries
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_that_alternate(library: str, dtype: torch.dtype) -> None:
    """A cached plan of one size used for another; the patched model and the optimized one, judged against fp64."""
    model = tiny_models.make(library).eval()
    truth, baseline = copy.deepcopy(model).double(), copy.deepcopy(model).to(dtype)
    patched = effnet_fast.patch(copy.deepcopy(model)).to(dtype)
    runs = [patched]
    if native.available("_ops")[0]:
        runs.append(effnet_fast.optimize(model, (2, 3, *SIZES[0]), dtype=dtype))
    seen: dict[tuple[object, ...], Tensor] = {}
    with torch.no_grad():
        for i, size in enumerate(SIZES):
            torch.manual_seed(size[0])
            x = torch.randn(1 + i % 2, 3, *size).to(dtype)
            want, near = truth(x.double()), baseline(x)
            for run in runs:
                got = run(x)
                assert_accurate(
                    f"{size}", got, near, want, torch.float32 if dtype == torch.float32 else dtype
                )
                assert torch.equal(seen.setdefault((id(run), *x.shape), got), got)


@libraries
def test_training_sizes_that_alternate(library: str) -> None:
    stock = tiny_models.make(library).train()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    for size in SIZES[:4]:
        torch.manual_seed(size[1])
        x = torch.randn(3, 3, *size, dtype=torch.float64)
        for model in (stock, patched):
            torch.manual_seed(5)
            with use_backend("reference"):
                model.double()(x).square().mean().backward()
    for p, q in zip(stock.parameters(), patched.parameters(), strict=True):
        close(q.grad, p.grad, 1e-8)


def test_same_padding_is_tensorflows() -> None:
    """Sizes that the stride does not divide; the odd pixel at the right and at the bottom."""
    for kernel in (1, 3, 5, 7):
        for stride in (1, 2, 3):
            for size in range(1, 40):
                left, right, top, bottom = same_padding(size, size + 1, kernel, stride)
                for before, after, n in ((top, bottom, size), (left, right, size + 1)):
                    out = -(-n // stride)
                    assert before + after == max((out - 1) * stride + kernel - n, 0)
                    assert after - before in (0, 1)


@pytest.mark.parametrize("library", ["timm_lite", "efficientnet_pytorch", "efficientnet_lite_pytorch"])
def test_same_padding_exported_at_one_size_and_run_at_another(library: str) -> None:
    """Silently right only at the traced size: the values must be the stock model's, or it must raise."""
    model = effnet_fast.patch(tiny_models.make(library).eval())
    x = torch.randn(2, 3, 24, 32)
    stock = effnet_fast.unpatch(copy.deepcopy(model))
    with torch.no_grad():
        program = torch.export.export(model, (x,)).module()
        close(program(x), stock(x))
        for other in (torch.randn(2, 3, 23, 33), torch.randn(2, 3, 32, 24)):
            with pytest.raises((AssertionError, RuntimeError)):
                program(other)


@pytest.mark.parametrize("library", ["torchvision", "timm_lite"])
def test_new_image_sizes_do_not_compile_again(library: str) -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        compilations.append(graph)
        return graph.forward

    model = effnet_fast.patch(tiny_models.make(library).eval())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for size in ((32, 48), (40, 48), (64, 32), (56, 72)):
            x = torch.randn(2, 3, *size)
            close(compiled(x), model(x))
    assert len(compilations) <= 2
