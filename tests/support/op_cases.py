"""Random calls of the package's ops: what hypothesis draws, the tensors made from it, and the judgement.

A case is plain numbers, so that a failure prints as something to paste into a regression test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import compositions
import pytest
import torch
from guarded import LAYOUTS, Guarded, guarded
from hypothesis import strategies as st
from torch import Tensor

from effnet_fast.backend import native
from effnet_fast.dispatch import use_backend
from effnet_fast.tolerance import UNIT_ROUNDOFF, error
from effnet_fast.types import accumulation_dtype

#: (backend, dtype): what each runs.
RUNGS = (
    ("cpu", torch.float32),
    ("cpu", torch.bfloat16),
    ("reference", torch.float64),
    ("reference", torch.float32),
    ("reference", torch.float16),
    ("reference", torch.bfloat16),
)
RUNG = pytest.mark.parametrize(
    "backend, dtype",
    [
        pytest.param(
            backend,
            dtype,
            id=f"{backend}-{str(dtype)[6:]}",
            marks=pytest.mark.skipif(
                backend == "cpu" and not native.available("_ops")[0], reason="needs the native library"
            ),
        )
        for backend, dtype in RUNGS
    ],
)
#: Around the kernels' tiles and vectors.
CHANNELS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 23, 24, 31, 32, 33, 40, 48, 49, 63, 64, 65, 96, 97)
#: A multiple of the baselines' errors, and a floor of some roundings of the largest value. Wider than the factor two of
#: effnet_fast.tolerance, which the tests of single kernels keep: among many thousand cases luck takes every side.
FACTOR = 6.0
FLOOR_ROUNDINGS = {torch.float64: 1000.0, torch.float32: 100.0, torch.float16: 16.0, torch.bfloat16: 16.0}
#: How far away PyTorch's error is measured too, in roundings.
NEIGHBOURS = (4.0, -4.0, 7.0, -7.0)


class Memory(NamedTuple):
    """How the tensors of a case lie in memory and what they hold; the same for every op."""

    seed: int
    layouts: tuple[str, ...]
    offset: int
    #: Small integers: every sum is exact, so that activations are met exactly at their kinks.
    exact: bool


def memories(exact: bool | None = None) -> st.SearchStrategy[Memory]:
    return st.builds(
        Memory,
        st.integers(0, 2**31),
        st.tuples(*[st.sampled_from(LAYOUTS[:-1])] * 3),
        st.integers(0, 3),
        st.booleans() if exact is None else st.just(exact),
    )


class Inputs:
    """Makes the tensors of one case, guarded, and remembers them for the oracle."""

    def __init__(self, memory: Memory, dtype: torch.dtype) -> None:
        self.memory, self.dtype = memory, dtype
        self.rng = random.Random(memory.seed)
        self.draw = torch.Generator().manual_seed(memory.seed)
        self.guards: list[Guarded] = []
        self.leaves: list[Tensor | None] = []

    def values(self, shape: Sequence[int], integers: Sequence[float], spread: float, mean: float) -> Tensor:
        if self.memory.exact:
            chosen = torch.tensor(list(integers), dtype=torch.float64)
            return chosen[torch.randint(len(chosen), tuple(shape), generator=self.draw)]
        return torch.randn(tuple(shape), dtype=torch.float64, generator=self.draw) * spread + mean

    def place(self, values: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
        self.guards.append(guarded(values.to(dtype), layout, self.memory.offset, self.rng))
        return self.guards[-1].view.detach()

    def tensor(self, *shape: int, spread: float = 1.0) -> Tensor:
        """An image or a convolution's weight, in the dtype of the case."""
        values = self.values(shape, (-1, 0, 1), spread, 0.0)
        return self._leaf(self.place(values, self.dtype, self.rng.choice(self.memory.layouts)))

    def vector(
        self,
        *shape: int,
        mean: float = 0.0,
        spread: float = 0.5,
        integers: Sequence[float] = (-2, -1, 0, 1, 2),
        dtype: torch.dtype | None = None,
        differentiable: bool = True,
        positive: bool = False,
    ) -> Tensor:
        """A per-channel parameter, in the accumulation dtype unless told otherwise."""
        values = self.values(shape, integers, spread, mean)
        if positive:
            values = values.abs() + 0.25
        wanted = dtype or accumulation_dtype(self.dtype)
        return self._leaf(self.place(values, wanted, self.rng.choice(self.memory.layouts)), differentiable)

    def nothing(self) -> None:
        self.leaves.append(None)

    def _leaf(self, t: Tensor, differentiable: bool = True) -> Tensor:
        t.requires_grad_(differentiable and self.rng.random() < 0.85)
        self.leaves.append(t)
        return t


Run = Callable[[list[Tensor | None]], list[Tensor]]


def gradients(run: Run, leaves: list[Tensor | None], dy: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Outputs, then the gradients of the leaves that want one."""
    out = run(leaves)
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    used = [(y, g) for y, g in zip(out, dy, strict=True) if g is not None and y.requires_grad]
    grads: Sequence[Tensor | None] = ()
    if wanted and used:
        ys, gs = zip(*used, strict=True)
        grads = torch.autograd.grad(ys, wanted, gs, allow_unused=True)
    return [*(y.detach() for y in out), *grads]


def _again(leaves: list[Tensor | None], convert: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """Leaves of their own, in plain memory: PyTorch's BatchNorm gives wrong gradients where the layout of what comes in is
    ambiguous (torch 2.14, width 1: the image contiguous, its gradient channels_last), and is no oracle there.
    """
    return [None if t is None else plain(convert(t.detach())).requires_grad_(t.requires_grad) for t in leaves]


def plain(t: Tensor) -> Tensor:
    """A copy with the strides of its shape."""
    return torch.empty(t.shape, dtype=t.dtype).copy_(t)


def judge(backend: str, inputs: Inputs, op: Run, composed: Run, acts: Sequence[str] = ()) -> None:
    """Outputs and gradients of ``op`` against fp64, and every byte of its inputs as it was.

    ``acts`` are its activations in their order. Where one's argument is not exact, gradients are judged only if no
    argument is near a kink.

    The error allowed is a multiple of the errors of PyTorch's own composition in the same dtype, at these inputs and at
    some a few roundings away, and of what fp64 makes of inputs displaced by one rounding: the sums here are so few that
    PyTorch may be lucky at one point. (A weight before BatchNorm has a gradient that nearly cancels and that no factor on
    the weight changes: fp64 tells nothing of its rounding errors, and PyTorch's own differ fortyfold between neighbours.)
    """
    dtype, memory = inputs.dtype, inputs.memory
    truth_leaves = _again(inputs.leaves, lambda t: t.double())
    with torch.no_grad():
        shapes = [y.shape for y in composed(truth_leaves)]
    kinds = [dtype, *[accumulation_dtype(dtype)] * (len(shapes) - 1)]
    dy: list[Tensor | None] = []
    for shape, kind in zip(shapes, kinds, strict=True):
        layout = inputs.rng.choice((*memory.layouts, "expanded"))
        given = inputs.place(inputs.values(shape, (-1, 0, 1), 1.0, 0.0), kind, layout)
        dy.append(given if not dy or inputs.rng.random() < 0.8 else None)

    with use_backend(backend):
        got = gradients(op, inputs.leaves, dy)
    for i, guard in enumerate(inputs.guards):
        guard.check(f"tensor {i}")

    dy = [None if t is None else plain(t) for t in dy]
    dy64 = [None if t is None else t.double() for t in dy]
    with compositions.distances_to_kinks() as distances:
        truth = gradients(composed, truth_leaves, dy64)
    baselines = [(gradients(composed, _again(inputs.leaves, lambda t: t), dy), truth)]
    for sign in (1.0, -1.0):
        baselines.append((gradients(composed, _again(inputs.leaves, displaced(dtype, sign)), dy64), truth))
    # Small integers are there to be computed without a rounding.
    for roundings in () if memory.exact else NEIGHBOURS:
        near = [None if t is None else _near(t, dtype, roundings) for t in inputs.leaves]
        exactly = gradients(composed, _again(near, lambda t: t.double()), dy64)
        baselines.append((gradients(composed, _again(near, lambda t: t), dy), exactly))
    outputs = len(shapes)
    assert len(got) == len(truth), f"{len(got) - outputs} gradients, expected {len(truth) - outputs}"
    assert got[0].is_contiguous(memory_format=torch.channels_last) or got[0].dim() == 2
    exact = memory.exact and all(name in ("none", "relu", "relu6") for name in acts[:-1])
    smooth = exact or min(distances) > 64 * UNIT_ROUNDOFF[dtype]
    for i, (a, t) in enumerate(zip(got, truth, strict=True)):
        name = f"output {i}" if i < outputs else f"gradient {i - outputs}"
        assert (a is None) == (t is None), f"{name}: {'no' if a is None else 'a'} tensor"
        if a is None or t is None or not t.numel() or (i >= outputs and not smooth):
            continue
        errors = [error(b[i], there[i]) for b, there in baselines if b[i] is not None]  # type: ignore[arg-type]
        finite = [e for e in errors if e != float("inf")]
        limit = FACTOR * max(finite, default=0.0)
        limit += FLOOR_ROUNDINGS[dtype] * UNIT_ROUNDOFF[dtype] * t.abs().max().item()
        assert error(a, t) <= limit, (
            f"{name}: error {error(a, t):.3e} exceeds {limit:.3e} ({backend}, {dtype})"
        )


def _near(t: Tensor, dtype: torch.dtype, roundings: float) -> Tensor:
    """``t`` in its own dtype, moved by up to so many roundings of the computation's."""
    return displaced(dtype, roundings)(t.detach()).to(t.dtype).requires_grad_(t.requires_grad)


def displaced(dtype: torch.dtype, sign: float) -> Callable[[Tensor], Tensor]:
    def displace(t: Tensor) -> Tensor:
        # A pattern, not a constant factor, which sums would not notice; of a single element too.
        pattern = torch.arange(t.numel(), dtype=torch.float64).mul(1.7).add(0.7).sin().reshape(t.shape)
        return t.double() * (1 + sign * UNIT_ROUNDOFF[dtype] * pattern)

    return displace
