"""Triton on a real GPU: what the interpreter cannot show. Values are checked by tests/triton/values there, too.

python -m pytest -m gpu tests/triton tests/gpu/test_triton.py
"""

import pytest
import torch

pytest.importorskip("triton")

from by_name import ByName
from effnet_fast.kernels import launchers

from effnet_fast import dispatch
from effnet_fast.backend import reference
from effnet_fast.bench import tuner
from effnet_fast.models.config import BASE_STAGES
from effnet_fast.ops import mbconv_kernels as blocks
from effnet_fast.ops.mbconv_backward import training_backward
from effnet_fast.ops.mbconv_types import Needs
from effnet_fast.tolerance import allowed, error

pytestmark = pytest.mark.gpu


def image(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """PyTorch's convolutions, and with them ours, round float32 to TF32 unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def on_triton():
    with dispatch.answering(lambda op, **facts: getattr(launchers, op)):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stage", BASE_STAGES, ids=lambda s: f"k{s.kernel_size}s{s.stride}-{s.in_channels}")
def test_blocks_of_b0(stage, dtype):
    """Training step of every stage's block at batch 16: output and gradients against fp64."""
    x, weights, settings = tuner.random_block(stage, 28, dtype, 16, torch.device("cuda"))
    dy = None
    results = []
    for functions, cast in (
        (launchers, lambda t: t),
        (reference, lambda t: t),
        (reference, torch.Tensor.double),
    ):
        with dispatch.answering(lambda op, f=functions, **facts: getattr(f, op)):
            w = _map(weights, cast)
            y, saved = blocks.training_forward(cast(x), w, settings, None)
            dy = torch.randn_like(y) if dy is None else dy
            needs = Needs(True, True, True, True)
            learnt = (w.expand, w.depthwise, w.project)
            grads = training_backward(cast(dy), cast(x), saved, w, settings, None, needs, learnt)
        results.append({"y": y, **{k: v for k, v in grads._asdict().items() if v is not None}})
    actual, baseline, truth = results
    for key in truth:
        # The block is a chain of a dozen kernels; every link may add an error like the reference's.
        limit = 4 * allowed(baseline[key], truth[key], dtype)
        assert error(actual[key], truth[key]) <= limit, (key, error(actual[key], truth[key]), limit)


def _map(value, cast):
    if isinstance(value, torch.Tensor):
        return cast(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, cast) for v in value))
    return value


def test_more_elements_than_32_bits_count():
    """2^31 elements and a few: the last image must be as right as the first."""
    n, c, size = 129, 1024, 128
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GB of GPU memory")
    x = torch.zeros((n, size, size, c), device="cuda", dtype=torch.float16).permute(0, 3, 1, 2)
    x[0] = torch.randn((c, size, size), device="cuda")
    x[-1] = x[0]
    assert x.numel() > 2**31
    y = launchers.affine_residual(x, None, "silu")
    assert y[-1].equal(y[0]) and y[0].abs().max() > 0
    del y
    weight = torch.randn((c, 1, 3, 3), device="cuda", dtype=torch.float16)
    out = launchers.depthwise(x, weight, 1, (1, 1, 1, 1), pool=True)
    assert out.y[-1].equal(out.y[0]) and out.mean[-1].equal(out.mean[0])
    expected = reference.depthwise(x[-1:], weight, 1, (1, 1, 1, 1)).y
    torch.testing.assert_close(out.y[-1:], expected, rtol=1e-2, atol=1e-2)
    del out, expected
    projection = torch.randn((16, c), device="cuda", dtype=torch.float16) / 32
    y = launchers.pointwise(x, projection, stats=True).y
    assert y[-1].equal(y[0])
    back = ByName(launchers).pointwise_backward(y, x, projection)
    assert back.dx[-1].equal(back.dx[0])


def test_large_batch_of_pixels():
    """70000 images of one pixel: more than a grid's y or z axis could hold."""
    x, weight = image(70_000, 24, 1, 1), torch.randn((16, 24), device="cuda", dtype=torch.float16)
    gate = torch.rand((70_000, 24), device="cuda")
    actual = launchers.pointwise(x, weight, gate=gate).y
    torch.testing.assert_close(actual, reference.pointwise(x, weight, gate=gate).y, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_cuda_graph(mode, on_triton):
    """Captured after a warm-up, replayed on new input: bitwise what a direct run gives."""
    x, weights, settings = tuner.random_block(BASE_STAGES[2], 28, torch.bfloat16, 8, torch.device("cuda"))

    def run():
        if mode == "inference":
            return [blocks.inference(x, weights, settings, None)]
        y, saved = blocks.training_forward(x, weights, settings, None)
        needs = Needs(True, True, True, True)
        learnt = (weights.expand, weights.depthwise, weights.project)
        grads = training_backward(y, x, saved, weights, settings, None, needs, learnt)
        return [y, *(g for g in grads if g is not None)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.copy_(torch.rand_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for replayed, direct in zip(captured, run(), strict=True):
        assert replayed.equal(direct)


def test_side_stream():
    """A launch goes to the current stream, behind a slow producer on it."""
    stream = torch.cuda.Stream()
    x, weight = image(8, 64, 56, 56), torch.randn((64, 64), device="cuda", dtype=torch.float16)
    expected = launchers.pointwise(x, weight).y
    source = x.clone()
    x.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(source)
        y = launchers.pointwise(x, weight).y
    stream.synchronize()
    assert y.equal(expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_gpu():
    x = image(2, 24, 7, 7).to("cuda:1")
    weight = torch.randn((16, 24), device="cuda:1", dtype=torch.float16)
    with torch.cuda.device(0):
        y = launchers.pointwise(x, weight).y
    torch.testing.assert_close(y, reference.pointwise(x, weight).y, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("op", ["forward", "merged backward", "backward"])
def test_tf32_follows_torch(op, monkeypatch):
    """float32 is as exact as PyTorch's setting for convolutions says, which these are."""
    cout = 32 if op == "merged backward" else 128
    x, weight = image(4, 256, 14, 14, dtype=torch.float32), torch.randn((cout, 256), device="cuda")
    dy = image(4, cout, 14, 14, dtype=torch.float32)

    def run(functions, *tensors):
        x, weight, dy = tensors
        if op == "forward":
            return [functions.pointwise(x, weight).y]
        return ByName(functions).pointwise_backward(dy, x, weight)[:2]

    truth = run(reference, x.double(), weight.double(), dy.double())
    errors = {}
    for allowed_here in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed_here)
        got = run(launchers, x, weight, dy)
        errors[allowed_here] = [error(a, t) / t.abs().max().item() for a, t in zip(got, truth, strict=True)]
    for exact, fast in zip(errors[False], errors[True], strict=True):
        assert exact < 1e-5
        if torch.cuda.get_device_capability() >= (8, 0):
            assert exact < fast < 1e-2
