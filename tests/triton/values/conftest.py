"""Values of the Triton kernels against the reference, on whatever can run them.

On CUDA tensors, or on CPU tensors in a process started with TRITON_INTERPRET=1 (tests/triton/test_interpreter.py
starts one). Elsewhere these tests count as gpu tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_name import ByName
from effnet_fast.kernels.runtime import INTERPRET
from torch import Tensor

from effnet_fast.backend import reference
from effnet_fast.tolerance import UNIT_ROUNDOFF, assert_accurate
from effnet_fast.types import Affine, BatchNormGrad, Norm, RunningNorm

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GUARD = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not INTERPRET and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``dtype`` run in every dtype; those over many shapes do the half types on the first two only,
    because the interpreter is slow."""
    if "dtype" not in metafunc.fixturenames:
        return
    shapes = getattr(metafunc.module, "SHAPES", None)
    if shapes is None or "shape" not in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=_dtype_name)
        return
    few = list(shapes)[:2] if INTERPRET else list(shapes)
    pairs = [(name, dtype) for dtype in DTYPES for name in (shapes if dtype == torch.float32 else few)]
    ids = [f"{name}-{_dtype_name(dtype)}" for name, dtype in pairs]
    metafunc.parametrize("shape, dtype", [(shapes[name], dtype) for name, dtype in pairs], ids=ids)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Kit:
    """Makes inputs and compares; every image lies between NaNs, so that a read out of bounds shows."""

    device = "cpu" if INTERPRET else "cuda"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def image(self, n: int, c: int, h: int, w: int, offset: int = 0, scale: float = 1.0) -> Tensor:
        """[n, c, h, w] in channels_last memory, ``offset`` elements past an aligned address."""
        size = n * c * h * w
        memory = torch.full((size + 2 * GUARD,), float("nan"), dtype=self.dtype, device=self.device)
        start = GUARD + offset
        memory[start : start + size] = (torch.randn(size) * scale).to(memory)
        return memory[start : start + size].view(n, h, w, c).permute(0, 3, 1, 2)

    def weight(self, *shape: int) -> Tensor:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        return (torch.randn(shape) / fan_in**0.5).to(self.device, self.dtype)

    def vector(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.device)

    def positive(self, *shape: int) -> Tensor:
        return (torch.rand(shape) + 0.5).to(self.device)

    def affine(self, c: int) -> Affine:
        return Affine(self.positive(c), self.vector(c))

    def running_norm(
        self, c: int, dtype: torch.dtype = torch.float32, parameters: bool = True
    ) -> RunningNorm:
        """A BatchNorm in inference, its vectors of one dtype; without ``parameters``, of ``affine=False``."""
        weight, bias, mean = (t.to(dtype) for t in (self.positive(c), self.vector(c), self.vector(c)))
        var = self.positive(c).to(dtype)
        return RunningNorm(*((weight, bias) if parameters else (None, None)), mean, var, 1e-3)

    def norm(self, c: int) -> Norm:
        return Norm(self.vector(c), self.positive(c))

    def grad(self, c: int) -> BatchNormGrad:
        return BatchNormGrad(self.positive(c), 0.3 * self.vector(c), 0.3 * self.vector(c), self.vector(c))

    def check(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Run an op on Triton; every part of the result must be as near to the fp64 truth as the reference is."""
        from effnet_fast.kernels import launchers

        actual = getattr(ByName(launchers), op)(*args, **kwargs)
        function = getattr(ByName(reference), op)
        baseline = function(*args, **kwargs)
        truth = function(*_double(args), **_double(kwargs))
        for name, a, b, t in _parts(op, actual, baseline, truth):
            assert (a is None) == (t is None), name
            if a is not None:
                assert a.dtype == b.dtype, name
                if a.dim() == 4 and name in ("y", "dx"):
                    assert a.is_contiguous(memory_format=torch.channels_last), name
                # Gradients of weights may be rounded more coarsely than what is computed with.
                dtype = max(self.dtype, a.dtype, key=UNIT_ROUNDOFF.__getitem__)
                assert_accurate(f"{op}.{name}", a, b, t, dtype)
        return actual


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_double(v) for v in value))
    if isinstance(value, tuple):
        return tuple(_double(v) for v in value)
    if isinstance(value, dict):
        return {key: _double(v) for key, v in value.items()}
    return value


def _parts(op: str, *results: Any) -> list[tuple[Any, ...]]:
    """(name, actual, baseline, truth) of every tensor; partial results are merged first."""
    if op == "channel_stats":
        merged = [reference.batch_norm_finalize(r, None, None, 0.0).vectors[:2] for r in results]
        return [(name, *(m[i] for m in merged)) for i, name in enumerate(("mean", "var"))]
    if isinstance(results[0], Tensor):
        merged = [r.sum(0) for r in results] if op == "batch_norm_reduce" else results
        return [("result", *merged)]
    parts: list[tuple[Any, ...]] = []
    for name in results[0]._fields:
        values = [r.mean if name == "pooled" else getattr(r, name) for r in results]
        if isinstance(values[0], BatchNormGrad):
            parts += [(f"{name}.{key}", *(getattr(v, key) for v in values)) for key in BatchNormGrad._fields]
            continue
        if name == "stats" and values[0] is not None:
            # Statistics are of the values as stored: compared with those, not with the truth's unrounded ones.
            values = [reference.batch_norm_finalize(v, None, None, 0.0).vectors[:2] for v in values]
        if name == "sums" and op.startswith("depthwise") and values[0] is not None:
            values = [v.sum(0) for v in values]
        parts.append((name, *values))
    return parts


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU convolutions, and so these kernels, round float32 to TF32 unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def kit(request: pytest.FixtureRequest) -> Kit:
    dtype = request.getfixturevalue("dtype") if "dtype" in request.fixturenames else torch.float32
    return Kit(dtype)
