"""The CUDA C++ kernels on a GPU: what the tests on the CPU cannot show, and the same comparisons at larger sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from by_name import ByName
from torch import Tensor

from effnet_fast.backend import cuda, native
from effnet_fast.tolerance import error
from tests.cuda_on_cpu import problems

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TEMPLATES = list(itertools.product((3, 5, 7), (1, 2)))


def _to_gpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to_gpu(part) for part in value))
    return value


def _on_gpu(problem: problems.Problem) -> problems.Problem:
    kwargs = {name: _to_gpu(value) for name, value in problem.kwargs.items()}
    return problem._replace(args=tuple(map(_to_gpu, problem.args)), kwargs=kwargs)


def _solve(problem: problems.Problem, **options: Any) -> Any:
    return getattr(ByName(cuda), problem.op)(*problem.args, **problem.kwargs, **options)


@pytest.fixture(autouse=True)
def runnable(request: pytest.FixtureRequest) -> None:
    params = getattr(request.node, "callspec", None)
    dtype = params.params.get("dtype", torch.float32) if params else torch.float32
    ok, reason = cuda.can_run("depthwise", torch.device("cuda"), dtype)
    if not ok:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), TEMPLATES)
def test_depthwise(dtype: torch.dtype, kernel: int, stride: int) -> None:
    half = kernel // 2
    for shape, padding in [
        ((3, 40, 33, 29), (half,) * 4),
        ((2, 35, 56, 57), (half, 0, 1, half)),
        ((33, 96, 7, 7), (half,) * 4),
    ]:
        for training in (False, True):
            problem = _on_gpu(problems.depthwise(dtype, kernel, stride, shape, padding, training=training))
            problems.check(problem, _solve(problem))
        for kind in ("block", "first"):
            problem = _on_gpu(problems.depthwise_backward(dtype, kernel, stride, shape, padding, kind=kind))
            problems.check(problem, _solve(problem))


@pytest.mark.parametrize(("kernel", "stride"), TEMPLATES)
def test_every_plan(kernel: int, stride: int) -> None:
    half = kernel // 2
    shape = (3, 70, 19, 30)
    device = torch.cuda.get_device_properties(0)
    limits = (
        device.multi_processor_count,
        device.shared_memory_per_block_optin,
        device.shared_memory_per_multiprocessor,
    )
    common: dict[str, Any] = {"padding": (half,) * 4, "element": 2, "device": limits}
    forward = _on_gpu(problems.depthwise(torch.float16, kernel, stride, shape, (half,) * 4))
    backward = _on_gpu(problems.depthwise_backward(torch.float16, kernel, stride, shape, (half,) * 4))
    host = native.host()
    for plan in range(len(host.depthwise_plans(shape, kernel, stride, **common))):
        problems.check(forward, _solve(forward, plan=plan))
    for plan in range(len(host.depthwise_plans(shape, kernel, stride, backward=True, has_z=True, **common))):
        problems.check(backward, _solve(backward, plan=plan))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 96, 4), (32, 1152, 48), (300, 480, 20), (5, 33, 7)])
def test_squeeze_excite(dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    for backward in (False, True):
        problem = problems.squeeze_excite(dtype, *size, backward=backward, acts=("silu", "sigmoid"))
        problems.check(_on_gpu(problem), _solve(_on_gpu(problem)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_pointers(dtype: torch.dtype) -> None:
    problem = _on_gpu(problems.depthwise(dtype, 3, 1, (2, 40, 9, 10), (1, 1, 1, 1)))
    x = problem.args[0]
    shifted = torch.empty(x.numel() + 1, dtype=dtype, device="cuda")[1:]
    shifted = shifted.view(2, 9, 10, 40).permute(0, 3, 1, 2).copy_(x)
    assert shifted.data_ptr() % 16 != 0
    problem = problem._replace(args=(shifted, *problem.args[1:]))
    problems.check(problem, _solve(problem))


def test_silu_over_every_bfloat16() -> None:
    """The error of the approximate instructions stays below the rounding to bf16."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    values = values[values.isfinite() & (values.float().abs() <= 80)].cuda()
    x = values.reshape(1, 1, 1, -1).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16, device="cuda")
    weight[0, 0, 1, 1] = 1
    got = cuda.depthwise(x, weight, 1, (1, 1, 1, 1), act="silu").y.double()
    truth = torch.nn.functional.silu(x.double())
    spacing = torch.ldexp(torch.ones_like(truth), (torch.frexp(truth).exponent - 8).clamp_min(-133))
    assert ((got - truth).abs() <= 0.502 * spacing).all()


def test_same_bits_every_time() -> None:
    forward = _on_gpu(
        problems.depthwise(torch.bfloat16, 5, 1, (16, 144, 28, 28), (2, 2, 2, 2), training=True)
    )
    backward = _on_gpu(problems.depthwise_backward(torch.bfloat16, 5, 1, (16, 144, 28, 28), (2, 2, 2, 2)))
    gate = _on_gpu(
        problems.squeeze_excite(torch.float32, 64, 144, 6, backward=True, acts=("silu", "sigmoid"))
    )
    for problem in (forward, backward, gate):
        first = _solve(problem)
        for _ in range(20):
            for one, other in zip(first, _solve(problem), strict=True):
                assert (one is None and other is None) or torch.equal(one, other)


def test_more_than_2_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GB of GPU memory")
    n, h, w, c = 3, 2**12, 2**12, 64
    x = torch.zeros(n, h, w, c, dtype=torch.float16, device="cuda").permute(0, 3, 1, 2)
    x[-1, :, -3:, -3:] = torch.randn(c, 3, 3, dtype=torch.float16, device="cuda")
    weight = torch.randn(c, 1, 3, 3, dtype=torch.float16, device="cuda")
    assert x.numel() > 2**31
    y = cuda.depthwise(x, weight, 1, (1, 1, 1, 1)).y
    corner = x[-1:, :, -8:, -8:].float()
    truth = torch.nn.functional.conv2d(corner, weight.float(), padding=1, groups=c)
    assert error(y[-1:, :, -6:, -6:], truth[:, :, -6:, -6:].double()) < 2e-2


def test_empty_batch() -> None:
    x = torch.empty(0, 8, 5, 5, device="cuda").to(memory_format=torch.channels_last)
    weight = torch.randn(8, 1, 3, 3, device="cuda")
    out = cuda.depthwise(x, weight, 1, (1, 1, 1, 1), pool=True, stats=True)
    assert out.y.shape == (0, 8, 5, 5)
    assert out.pooled is not None
    assert out.pooled.shape == (0, 8)
    grad = ByName(cuda).depthwise_backward(out.y, x, weight, 1, (1, 1, 1, 1))
    assert grad.dweight is not None
    assert grad.dweight.abs().sum().item() == 0


def test_large_batch_of_small_images() -> None:
    """More images than a grid has rows in its second and third dimension."""
    problem = _on_gpu(problems.depthwise(torch.float32, 3, 1, (70000, 8, 1, 1), (1, 1, 1, 1)))
    problems.check(problem, _solve(problem))


def test_cuda_graph_and_side_stream() -> None:
    problem = _on_gpu(problems.depthwise_backward(torch.bfloat16, 3, 2, (4, 48, 28, 28), (1, 1, 1, 1)))
    gate = _on_gpu(problems.squeeze_excite(torch.float32, 16, 96, 4, backward=True, acts=("silu", "sigmoid")))
    expected, expected_gate = _solve(problem), _solve(gate)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _solve(problem), _solve(gate)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got, got_gate = _solve(problem), _solve(gate)
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip((*got, *got_gate), (*expected, *expected_gate), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_bad_input_is_named() -> None:
    x = torch.randn(1, 8, 5, 5, device="cuda").to(memory_format=torch.channels_last)
    weight = torch.randn(8, 1, 3, 3, device="cuda")
    with pytest.raises(RuntimeError, match="depthwise: weight: expected"):
        cuda.depthwise(x, weight[:4], 1, (1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="depthwise: x: expected dense channels_last"):
        cuda.depthwise(x.contiguous(), weight, 1, (1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="depthwise: plan: expected"):
        cuda.depthwise(x, weight, 1, (1, 1, 1, 1), plan=10**6)
