"""Whole models on a CUDA device, as users run them: against stock PyTorch on the same device.

``EFFNET_FAST_TEST_DEVICE=cpu`` runs what does not need CUDA itself on the CPU, to try the tests without a GPU.
"""

import copy
import os

import pytest
import torch
from torch import nn

import effnet_fast
from effnet_fast import use_backend

REHEARSAL = "EFFNET_FAST_TEST_DEVICE" in os.environ
DEVICE = os.environ.get("EFFNET_FAST_TEST_DEVICE", "cuda")
pytestmark = [] if REHEARSAL else [pytest.mark.gpu]
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="CUDA streams and graphs")

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
#: Relative to the largest value: whole networks accumulate the rounding of some two hundred layers.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}


@pytest.fixture(autouse=True)
def _backend():
    with use_backend("reference" if REHEARSAL else "auto"):
        yield


@pytest.fixture
def exact_convolutions():
    """Stock fp32 convolutions round to TF32 by default; compare like with like."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def twins(name: str = "b0", size: int = 96, batch: int = 8) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    fused = effnet_fast.create(name, num_classes=10)
    for m in fused.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    fused = fused.to(DEVICE)
    return effnet_fast.unpatch(copy.deepcopy(fused)), fused, torch.randn(batch, 3, size, size, device=DEVICE)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.isfinite().all()
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-6)
    assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"


@DTYPES
@pytest.mark.usefixtures("exact_convolutions")
def test_inference(dtype: torch.dtype) -> None:
    stock, fused, x = twins()
    stock, fused, x = stock.eval().to(dtype), fused.eval().to(dtype), x.to(dtype)
    report = effnet_fast.report(fused)
    assert report.fused == 18, str(report)
    with torch.inference_mode():
        close(fused(x), stock(x), TOLERANCE[dtype])
        close(fused(x.contiguous(memory_format=torch.channels_last)), stock(x), TOLERANCE[dtype])


def gradients(model: nn.Module, x: torch.Tensor, amp: torch.dtype | None) -> list[torch.Tensor]:
    """Of one step, without stochastic depth, whose random numbers depend on the dtype."""
    for m in model.modules():
        if isinstance(m, effnet_fast.nn.StochasticDepth):
            m.p = 0.0
    model.train()
    with torch.autocast(DEVICE, dtype=amp, enabled=amp is not None):
        loss = model(x).float().square().mean() if amp else model(x).square().mean()
    loss.backward()
    return [p.grad.double() for p in model.parameters()]


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.usefixtures("exact_convolutions")
def test_training_step(amp: torch.dtype | None) -> None:
    """All gradients together: at most twice as far from fp64 as stock PyTorch in the same precision."""
    stock, fused, x = twins(size=128)
    for m in (*stock.modules(), *fused.modules()):
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    truth = gradients(copy.deepcopy(stock).double(), x.double(), None)
    size = torch.stack([g.norm() for g in truth]).norm()
    distance = []
    for model in (stock, fused):
        pairs = zip(gradients(model, x, amp), truth, strict=True)
        distance.append(torch.stack([(a - b).norm() for a, b in pairs]).norm() / size)
    assert distance[1] <= 2 * distance[0] + 1e-6, (
        f"from fp64: fused {distance[1]:.2e}, stock {distance[0]:.2e}"
    )
    loose = {"rtol": 1e-3, "atol": 1e-4} if amp is None else {"rtol": 5e-2, "atol": 5e-2}
    for (key, a), b in zip(stock.state_dict().items(), fused.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, **loose, msg=lambda m, key=key: f"{key}: {m}")


def test_grad_scaler_steps() -> None:
    _, fused, x = twins()
    optimizer = torch.optim.SGD(fused.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    target = torch.arange(len(x), device=DEVICE) % 10
    losses = []
    for _ in range(5):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.float16):
            loss = nn.functional.cross_entropy(fused(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and scaler.get_scale() == 2.0**8, losses


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_patched_models_of_other_libraries(library: str) -> None:
    module = pytest.importorskip(library)
    if library == "torchvision":
        stock = module.models.efficientnet_b0(num_classes=10)
    else:
        stock = module.create_model("tf_efficientnet_b0", num_classes=10)
    stock = stock.to(DEVICE).eval()
    fused = effnet_fast.patch(copy.deepcopy(stock), strict=True)
    x = torch.randn(4, 3, 97, 97, device=DEVICE)
    with torch.inference_mode():
        close(fused(x), stock(x), 5e-3)


def test_b5_infers_and_trains() -> None:
    model = effnet_fast.b5(num_classes=4).to(DEVICE)
    x = torch.randn(2, 3, 64 if REHEARSAL else 456, 64 if REHEARSAL else 456, device=DEVICE)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(x), torch.tensor([1, 2], device=DEVICE)).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.isfinite().all() for p in model.parameters())
    with torch.inference_mode():
        assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize("training", [False, True], ids=["infer", "train"])
def test_compile(training: bool) -> None:
    _, fused, x = twins()
    other = copy.deepcopy(fused).train(training)
    compiled = torch.compile(fused.train(training), fullgraph=True)
    with torch.set_grad_enabled(training):
        torch.manual_seed(2)
        expected = other(x)
        torch.manual_seed(2)
        got = compiled(x)
        if not training:
            close(got, expected, 1e-3)
            return
        # Inductor draws other random numbers than eager: compare what does not depend on them.
        assert got.shape == expected.shape and got.isfinite().all()
        got.sum().backward()
        assert all(p.grad.isfinite().all() for p in fused.parameters())


@needs_cuda
def test_cuda_graph_of_inference() -> None:
    _, fused, x = twins()
    fused.eval()
    with torch.inference_mode():
        expected = fused(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                fused(x)
        torch.cuda.current_stream().wait_stream(stream)
        static = x.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fused(static)
        graph.replay()
        torch.testing.assert_close(out, expected)
        static.copy_(x.flip(0))
        graph.replay()
        torch.testing.assert_close(out, fused(x.flip(0)))


@needs_cuda
def test_cuda_graph_of_a_training_step() -> None:
    _, fused, x = twins()
    static = x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            fused.zero_grad(set_to_none=True)
            fused(static).square().mean().backward()
    torch.cuda.current_stream().wait_stream(stream)
    fused.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused(static).square().mean().backward()
    graph.replay()
    first = [p.grad.clone() for p in fused.parameters()]
    graph.replay()
    assert all(g.isfinite().all() for g in first)
    tracked = next(m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)).num_batches_tracked
    assert tracked.item() == 5


@needs_cuda
def test_side_stream_with_a_slow_producer() -> None:
    _, fused, x = twins()
    fused.eval()
    with torch.inference_mode():
        expected = fused(x)
        stream = torch.cuda.Stream()
        late = torch.zeros_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            got = fused(late)
        torch.cuda.current_stream().wait_stream(stream)
        torch.testing.assert_close(got, expected)


def test_deterministic_mode_repeats_bit_for_bit() -> None:
    _, fused, x = twins()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        runs = []
        for _ in range(2):
            model = copy.deepcopy(fused)
            torch.manual_seed(1)
            model(x).square().mean().backward()
            runs.append({name: p.grad for name, p in model.named_parameters() if ".block." in name})
        # The blocks' gradients; stem and head are cuDNN's.
        different = [name for name in runs[0] if not torch.equal(runs[0][name], runs[1][name])]
        assert not different, different
    finally:
        torch.use_deterministic_algorithms(before)


@needs_cuda
def test_a_batch_beyond_65535_blocks() -> None:
    """70000 images of 1x1 to 4x4: grid.y and grid.z would be too small."""
    block = effnet_fast.patch(
        effnet_fast.nn.MBConv(8, 8, expand_ratio=2, kernel_size=3, stride=1, squeeze_channels=2)
        .to(DEVICE)
        .eval()
    )
    stock = effnet_fast.unpatch(copy.deepcopy(block))
    x = torch.randn(70_000, 8, 3, 3, device=DEVICE)
    with torch.inference_mode():
        close(block(x), stock(x), 5e-3)
