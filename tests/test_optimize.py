"""Optimized networks compute what their models compute: every library, both precisions, any batch, any thread."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from networks import NETWORKS, make_network
from torch import Tensor, nn

import effnet_fast
from effnet_fast import EffnetFastError, tolerance, unpatch
from effnet_fast.backend.reference.network import ReferenceProgram
from effnet_fast.data import images, samples
from effnet_fast.inference.check import cast
from effnet_fast.inference.extract import extract
from effnet_fast.inference.module import OptimizedModel

FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64


#: PyTorch's convolutions prove every network in fp64 (below); in fp32 and bf16 a few are enough.
PAIRS = [("cpu", name) for name in NETWORKS] + [("reference", name) for name in ("own", "timm-features")]


def stock(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """PyTorch's own result in one precision."""
    with torch.no_grad():
        return cast(unpatch(copy.deepcopy(model)).double(), dtype)(x.to(dtype))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folded_network_is_the_model(name: str) -> None:
    """In fp64, where only the folded weights' rounding to fp32 is left; odd sizes tell the paddings apart."""
    model, x = make_network(name), torch.randn(2, 3, 65, 47)
    network, keep_dims, tail = extract(model)
    got = ReferenceProgram(network, FP64).run(x)
    if tail:
        with torch.no_grad():
            got = nn.Sequential(*copy.deepcopy(tail)).double()(got[:, :, None, None] if keep_dims else got)
        keep_dims = False
    truth = stock(model, x, FP64)
    tolerance.assert_accurate(
        name, got[:, :, None, None] if keep_dims else got, stock(model, x, FP32), truth, FP32
    )


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("backend, name", PAIRS, indirect=["backend"])
def test_accuracy(name: str, dtype: torch.dtype, backend: str) -> None:
    model = make_network(name)
    x = torch.randn(2, 3, 64, 64).to(dtype).float()
    optimized = effnet_fast.optimize(model, x, dtype=dtype)
    got = optimized(x)
    assert got.dtype == FP32 and not got.requires_grad and isinstance(optimized, OptimizedModel)
    tolerance.assert_accurate(name, got, stock(model, x, dtype).float(), stock(model, x, FP64), dtype)


def test_patched_and_bf16_models(backend: str) -> None:
    model, x = make_network("torchvision"), torch.randn(1, 3, 64, 64)
    plain = effnet_fast.optimize(model, x)(x)
    assert torch.equal(effnet_fast.optimize(effnet_fast.patch(copy.deepcopy(model)), x)(x), plain)
    # A model in bf16 gives bf16 by default, and its own weights exactly.
    half = copy.deepcopy(model).to(BF16)
    optimized = effnet_fast.optimize(half, (1, 3, 64, 64))
    y = optimized(x.to(BF16))
    assert y.dtype == BF16 and optimized(x).dtype == FP32
    truth = stock(half, x.to(BF16), FP64)
    tolerance.assert_accurate("bf16", y, stock(half, x, BF16), truth)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_any_batch_size_layout_and_image_size(dtype: torch.dtype, backend: str) -> None:
    model = make_network("timm-tf")
    optimized = effnet_fast.optimize(model, (2, 3, 64, 64), dtype=dtype)
    for n, height, width in [(1, 64, 64), (5, 33, 50), (2, 31, 70), (1, 1, 1)]:
        x = torch.randn(n, 3, height, width)
        truth, baseline = stock(model, x, FP64), stock(model, x, dtype).float()
        tolerance.assert_accurate(f"{n} {height} {width}", optimized(x), baseline, truth, dtype)
    wide = torch.randn(2, 3, 66, 128)
    part = wide[:, :, 1:65, ::2]
    wanted = optimized(part.contiguous())
    for same in (part, part.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(optimized(same), wanted, rtol=1e-5, atol=1e-5)
    assert optimized(torch.randn(0, 3, 64, 64)).shape == (0, 10)


def test_several_python_threads(backend: str) -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), (1, 3, 64, 64))
    batches = [torch.randn(1 + i % 3, 3, 40 + 8 * i, 64) for i in range(6)]
    wanted = [optimized(x) for x in batches]
    got: dict[tuple[int, int], Tensor] = {}

    def work(index: int) -> None:
        for round_ in range(4):
            got[index, round_] = optimized(batches[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(got) == 24
    for (index, _), y in got.items():
        torch.testing.assert_close(y, wanted[index], rtol=1e-5, atol=1e-5)


def test_the_model_is_neither_changed_nor_kept(backend: str) -> None:
    model, x = make_network("own"), torch.randn(1, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    optimized = effnet_fast.optimize(model, x, dtype=BF16)
    assert kinds == [type(m) for m in model.modules()] and not any(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    y = optimized(x)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    assert torch.equal(optimized(x), y)
    parts = [weakref.ref(part) for part in (model, *model.parameters())]
    del model, before, value
    gc.collect()
    assert not any(part() is not None for part in parts)


def test_gradients_are_refused_where_they_would_be_lost(backend: str) -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), (1, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    with pytest.raises(EffnetFastError, match="x requires a gradient"):
        optimized(x)
    wanted = optimized(x.detach())
    with torch.no_grad():
        assert torch.equal(optimized(x), wanted)
    with torch.inference_mode():
        assert torch.equal(optimized(x), wanted)
    with torch.autocast("cpu", dtype=BF16):
        assert torch.equal(optimized(x.detach()), wanted)
    # What comes out may go on into something that trains.
    head = nn.Linear(10, 2)
    head(optimized(x.detach())).sum().backward()
    assert head.weight.grad is not None and not list(optimized.parameters())


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_lite0_on_photos(dtype: torch.dtype, backend: str) -> None:
    try:
        samples.require("photos", samples.packages())
    except EffnetFastError as error:
        pytest.skip(str(error))
    paths = samples.photo_paths().values()
    pixels = torch.stack([images.read_image(path, images.LITE0_PRESET) for path in paths])
    x, model = images.normalize(pixels, images.LITE0_PRESET), samples.lite0()
    optimized = effnet_fast.optimize(model, x[:1], dtype=dtype)
    with torch.no_grad():
        expected = model(x)
    got = optimized(x)
    assert torch.equal(got.argmax(1), expected.argmax(1))
    if dtype == FP32:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_deep_copies_share_and_the_rest_is_refused() -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), (1, 3, 32, 32))
    assert "EfficientNet, 16 blocks" in repr(optimized)
    x = torch.randn(1, 3, 32, 32)
    both = copy.deepcopy(nn.Sequential(optimized, nn.Softmax(1)))
    assert torch.equal(both(x), optimized(x).softmax(1)) and both[0] is not optimized
    assert torch.equal(copy.copy(optimized)(x), optimized(x))
    for refused in (
        optimized.state_dict,
        lambda: optimized.load_state_dict({}),
        lambda: torch.jit.trace(optimized, x),
        lambda: effnet_fast.optimize(optimized, x),
    ):
        with pytest.raises(EffnetFastError, match="optimize"):
            refused()


def test_what_differs_from_the_model_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    from effnet_fast.inference import module

    model, x = make_network("timm-lite"), torch.randn(1, 3, 32, 32)
    real = module.program_of

    class Wrong:
        backend = "cpu"

        def __init__(self, folded) -> None:
            self.program = real(folded)

        def run(self, x: Tensor) -> Tensor:
            return change(self.program.run(x))

    monkeypatch.setattr(module, "program_of", Wrong)
    for dtype, factor in [(FP32, 1.001), (BF16, 1.3)]:
        change = lambda y, factor=factor: factor * y  # noqa: E731
        with pytest.raises(EffnetFastError, match="differs from the model's by"):
            effnet_fast.optimize(model, x, dtype=dtype)
    change = lambda y: torch.full_like(y, float("nan"))  # noqa: E731
    with pytest.raises(EffnetFastError, match="differs from the model's by inf"):
        effnet_fast.optimize(model, x)
    change = lambda y: y[:, :3]  # noqa: E731
    with pytest.raises(EffnetFastError, match="outputs of shapes"):
        effnet_fast.optimize(model, x)
    change = lambda y: y  # noqa: E731
    assert effnet_fast.optimize(model, x)(x).shape == (1, 10)
