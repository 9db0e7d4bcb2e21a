"""A block from weights as the model has them, in one native call, against PyTorch in fp64."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from effnet_fast.backend import cpu, native
from effnet_fast.backend.reference.activations import ACTIVATIONS
from effnet_fast.dispatch import use_backend
from effnet_fast.ops.mbconv_kernels import inference
from effnet_fast.ops.mbconv_types import BatchNorm, Settings, Weights
from effnet_fast.tolerance import allowed, error

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def norm(c: int) -> BatchNorm:
    return BatchNorm(
        torch.rand(c) + 0.5, torch.randn(c) / 4, torch.randn(c) / 4, torch.rand(c) + 0.5, 1e-3, False
    )


def weights(cin: int, c: int, cout: int, kernel: int, hidden: int | None) -> Weights:
    def matrix(o: int, i: int) -> Tensor:
        return torch.randn(o, i) / i**0.5

    se: tuple[Tensor | None, ...] = (None,) * 4
    if hidden is not None:
        se = (matrix(hidden, c), torch.randn(hidden), matrix(c, hidden), torch.randn(c))
    return Weights(
        *((matrix(c, cin), norm(c)) if c != cin else (None, None)),
        *(torch.randn(c, 1, kernel, kernel) / kernel, norm(c)),
        *(matrix(cout, c), norm(cout)),
        *se,
    )


def cast(w: Weights, dtype: torch.dtype, vectors: torch.dtype) -> Weights:
    def convert(part: object) -> object:
        if isinstance(part, BatchNorm):
            return BatchNorm(*(v.to(vectors) for v in part[:4]), *part[4:])  # type: ignore[union-attr]
        return part.to(dtype) if isinstance(part, Tensor) else part

    return Weights(*(convert(part) for part in w))  # type: ignore[arg-type]


def random_case(seed: int) -> tuple[Tensor, Weights, Settings]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    cin, kernel, stride = rng.choice((3, 8, 24, 32, 40)), rng.choice((3, 5, 7)), rng.choice((1, 2))
    residual = stride == 1 and rng.random() < 0.5
    c, cout = cin * rng.choice((1, 6)), cin if residual else rng.choice((7, 16, 24, 56, 113))
    side = kernel // 2
    padding = (side,) * 4 if residual else (side, rng.randint(side, side + 1), 0, side)
    act = ACTIVATIONS[seed % len(ACTIVATIONS)]
    settings = Settings(stride, padding, act, act, "silu", "sigmoid", residual)
    x = torch.randn(rng.randint(1, 4), cin, rng.randint(kernel, 30), rng.randint(kernel, 30))
    w = weights(cin, c, cout, kernel, rng.choice((None, 1, 6, 20)))
    return x.contiguous(memory_format=torch.channels_last), w, settings


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_blocks(isa: str, dtype: torch.dtype) -> None:
    for seed in range(21):
        x, w, settings = random_case(seed)
        x, w = x.to(dtype), cast(w, dtype, torch.float32)
        got = cpu.mbconv_inference(x, w, settings)
        with use_backend("reference"):
            truth = inference(x.double(), cast(w, torch.float64, torch.float64), settings, None)
            baseline = inference(x, w, settings, None)
        assert got.dtype == dtype and got.shape == truth.shape, seed
        assert got.is_contiguous(memory_format=torch.channels_last), seed
        # Twice the rule, as for a chain of roundings in tests/test_cpu_training.py.
        limit = 2 * allowed(baseline, truth, dtype)
        assert error(got, truth) <= limit, f"seed {seed}: error {error(got, truth):.3e} exceeds {limit:.3e}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_inference_takes_the_whole_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, settings = random_case(5)
    x, w = x.to(dtype), cast(w, dtype, torch.float32)
    calls = []

    def spy(*args: object) -> Tensor:
        calls.append(args)
        return whole(*args)

    whole = cpu.mbconv_inference
    monkeypatch.setattr(cpu, "mbconv_inference", spy)
    got = inference(x, w, settings, None)
    assert len(calls) == 1 and torch.equal(got, whole(x, w, settings))
    # Row by row dropout and another backend are left to the primitives.
    inference(x, w, settings, torch.ones(len(x)))
    with use_backend("reference"):
        inference(x, w, settings, None)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_threads(dtype: torch.dtype) -> None:
    """The same bits from any strides of x and any number of threads."""
    x, w, settings = random_case(2)
    x, w = x.to(dtype), cast(w, dtype, torch.float32)
    want = cpu.mbconv_inference(x, w, settings)
    wide = torch.full((x.shape[0], x.shape[1] + 3, x.shape[2] + 1, x.shape[3] + 2), float("nan"), dtype=dtype)
    wide[:, 1:-2, 1:, 1:-1] = x
    for same in (x.contiguous(), wide[:, 1:-2, 1:, 1:-1]):
        assert torch.equal(cpu.mbconv_inference(same, w, settings), want)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(cpu.mbconv_inference(x, w, settings), want)


def test_wrong_arguments() -> None:
    x, w, settings = random_case(1)
    for bad, message in (
        ((x[0], w, settings), "x: expected rank 4"),
        ((x[:, 1:], w, settings), "expected"),
        ((x, w._replace(depthwise=w.depthwise[1:]), settings), "expected"),
        ((x, w._replace(project=w.project[:, 1:]), settings), "project: expected"),
        ((x, w, settings._replace(stride=3)), "stride: expected 1 or 2"),
        ((x, w, settings._replace(padding=(-1, 0, 0, 0))), "padding: expected"),
        ((x, w, settings._replace(stride=2, residual=True)), "residual: expected"),
        ((x[:0], w, settings), "at least one pixel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            cpu.mbconv_inference(*bad)
