"""The other C++ CPU kernels of inference against the reference, and what holds for all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from cpu_cases import DTYPES, affine, double, image
from torch import Tensor

from effnet_fast.backend import cpu, native, reference
from effnet_fast.backend.reference.activations import ACTIVATIONS
from effnet_fast.tolerance import assert_accurate
from effnet_fast.types import Affine

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)

PLAIN = {"in_affine": None, "in_act": "none", "affine": None, "act": "none"}


def run_all(seed: int = 3) -> list[Tensor]:
    """One call of everything that is threaded, on shapes with many tasks."""
    torch.manual_seed(seed)
    out: list[Tensor] = []
    for dtype in DTYPES:
        x = image(2, 70, 40, 37, dtype)
        y, pooled, _ = cpu.depthwise(
            x, torch.randn(70, 1, 5, 5).to(dtype), 1, (2, 2, 2, 2), affine=affine(70), act="silu", pool=True
        )
        assert pooled is not None
        w1, w2 = torch.randn(9, 70).to(dtype), torch.randn(70, 9).to(dtype)
        gate = cpu.squeeze_excite(pooled, w1, None, w2, None)
        out += [y, pooled, gate, cpu.affine_pool(y, affine(70), "silu")]
        out.append(cpu.affine_residual(y, affine(70), "relu", torch.rand(2), x))
    return out


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run_all()
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(alone, run_all(), strict=True))
    finally:
        torch.set_num_threads(before)


def test_an_image_does_not_depend_on_its_batch() -> None:
    x, weight = image(3, 40, 33, 20), torch.randn(40, 1, 3, 3)
    batch = cpu.depthwise(x, weight, 1, (1, 1, 1, 1), act="silu", pool=True)
    for n in range(3):
        alone = cpu.depthwise(x[n : n + 1], weight, 1, (1, 1, 1, 1), act="silu", pool=True)
        assert torch.equal(alone.y[0], batch.y[n])
        assert alone.pooled is not None and batch.pooled is not None
        assert torch.equal(alone.pooled[0], batch.pooled[n])


def test_calls_from_several_python_threads() -> None:
    x, weight = image(1, 64, 20, 20), torch.randn(64, 1, 3, 3)
    small = image(1, 16, 5, 5)
    expected = cpu.depthwise(x, weight, 1, (1, 1, 1, 1), act="silu", pool=True)
    wrong: list[int] = []

    def work(me: int) -> None:
        for _ in range(20):
            # Scratch memory is per thread and grows: alternate sizes.
            cpu.depthwise(small, weight[:16], 2, (1, 1, 1, 1))
            got = cpu.depthwise(x, weight, 1, (1, 1, 1, 1), act="silu", pool=True)
            if not torch.equal(got.y, expected.y) or not torch.equal(got.pooled, expected.pooled):  # type: ignore[arg-type]
                wrong.append(me)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_at_the_edges(isa: str, act: str) -> None:
    inf, nan = float("inf"), float("nan")
    values = [0.0, -0.0, 3.0, -3.0, 6.0, 20.0, -20.0, 87.0, -87.0, 88.5, -88.5, 89.0, -89.0, 1e4, -1e4]
    x = torch.tensor([*values, 65504.0, inf, nan]).view(1, -1, 1, 1)
    got = cpu.affine_residual(x, None, act)
    expected = reference.activation(x.double(), act)
    # silu(-89) is -2e-37: as good as zero.
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-35, equal_nan=True)
    lowest = cpu.affine_residual(torch.tensor(-inf).view(1, 1, 1, 1), None, act)
    torch.testing.assert_close(
        lowest, reference.activation(torch.tensor(-inf), act).view(1, 1, 1, 1), equal_nan=True
    )


def test_silu_is_accurate_everywhere(isa: str) -> None:
    x = torch.linspace(-80, 80, 1 << 16).view(1, 16, 64, 64)
    truth = F.silu(x.double())
    worst = ((cpu.affine_residual(x, None, "silu") - truth) / truth).abs().nan_to_num(0).max().item()
    assert worst < 1e-6


def test_bfloat16_rounds_to_nearest_even(isa: str) -> None:
    """Through an affine, so that fp32 values between the bf16 ones are stored; NaN must stay NaN."""
    bits = torch.randint(-(2**31), 2**31 - 1, (1 << 16,), dtype=torch.int64).to(torch.int32)
    shift = torch.cat([bits.view(torch.float32), torch.tensor([float("nan"), float("inf"), 3.3961776e38])])
    shift = shift[(shift.abs() > 2.0**-126) | shift.isnan()]
    x = torch.zeros(1, shift.numel(), 1, 1, dtype=torch.bfloat16)
    got = cpu.affine_residual(x, Affine(torch.ones_like(shift), shift)).flatten()
    torch.testing.assert_close(got, shift.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16, 9, 9), (3, 24, 7, 5), (2, 7, 1, 1), (0, 8, 4, 4), (1, 200, 2, 2)])
def test_pointwise(isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    n, c, h, w = shape
    for out_channels in (3, 40):
        x, weight = image(*shape, dtype), (torch.randn(out_channels, c) / c**0.5).to(dtype)
        prologues: list[dict[str, object]] = [{}, {"gate": torch.rand(n, c)}]
        prologues.append({"in_affine": affine(c), "in_act": "silu", "gate": torch.rand(n, c)})
        epilogues: list[dict[str, object]] = [{}, {"affine": affine(out_channels), "act": "silu"}]
        residual = image(n, out_channels, h, w, dtype)
        epilogues.append({"affine": affine(out_channels), "row_scale": torch.rand(n), "residual": residual})
        for fused in ({**p, **e} for p in prologues for e in epilogues):
            got = cpu.pointwise(x, weight, pool=True, **fused)  # type: ignore[arg-type]
            exact = {k: v if isinstance(v, str) else double(v) for k, v in fused.items()}  # type: ignore[arg-type]
            truth = reference.pointwise(x.double(), weight.double(), pool=True, **exact)  # type: ignore[arg-type]
            assert got.y.stride() == truth.y.stride() and got.y.dtype == dtype
            if n:
                # Rounded where PyTorch rounds: the gated input, z and y.
                fp32 = {k: v.float() if isinstance(v, Tensor) else v for k, v in fused.items()}
                rounded = reference.pointwise(x.float(), weight.float(), **fp32).y.to(dtype)  # type: ignore[arg-type]
                size = truth.y.abs().max().item()
                limit = (
                    2 * (rounded.double() - truth.y).abs().max().item()
                    + (2e-2 if dtype.itemsize == 2 else 1e-5) * size
                )
                assert (got.y.double() - truth.y).abs().max().item() <= limit
                assert got.pooled is not None and truth.pooled is not None
                assert (got.pooled.double() - truth.pooled).abs().max().item() <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "c", "r"), [(1, 32, 8), (3, 1152, 48), (2, 17, 1), (5, 3, 2), (0, 16, 4)])
def test_squeeze_excite(isa: str, dtype: torch.dtype, n: int, c: int, r: int) -> None:
    pooled = torch.randn(n, c)
    w1, w2 = (torch.randn(r, c) / c**0.5).to(dtype), torch.randn(c, r).to(dtype)
    biases = [(None, None), (torch.randn(r).to(dtype), torch.randn(c))]
    for b1, b2 in biases:
        b2 = None if b2 is None else b2.to(dtype).float()
        for act, gate_act in (("silu", "sigmoid"), ("relu", "hardsigmoid")):
            got = cpu.squeeze_excite(pooled, w1, b1, w2, b2, act, gate_act)
            truth = reference.squeeze_excite(pooled.double(), w1, b1, w2, b2, act, gate_act)
            baseline = reference.squeeze_excite(pooled, w1, b1, w2, b2, act, gate_act)
            assert got.dtype == torch.float32 and got.shape == (n, c)
            if n:
                assert_accurate("gate", got, baseline, truth)


@pytest.mark.parametrize("with_parameters", [True, False])
def test_batch_norm_fold(with_parameters: bool) -> None:
    weight, bias = (torch.randn(37), torch.randn(37)) if with_parameters else (None, None)
    mean, var = torch.randn(37), torch.rand(37)
    got = cpu.batch_norm_fold(weight, bias, mean, var, 1e-3)
    expected = reference.batch_norm_fold(double(weight), double(bias), mean.double(), var.double(), 1e-3)  # type: ignore[arg-type]
    torch.testing.assert_close(got.vectors.double(), expected.vectors, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 24, 9, 7), (1, 3, 1, 1), (3, 1, 40, 40), (1, 2000, 6, 6), (0, 8, 3, 3)]
)
def test_elementwise_passes(isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    z, residual, folded = image(*shape, dtype), image(*shape, dtype), affine(shape[1])
    scale = torch.rand(shape[0])
    got = cpu.affine_residual(z, folded, "silu", scale, residual)
    truth = reference.affine_residual(z.double(), double(folded), "silu", scale.double(), residual.double())  # type: ignore[arg-type]
    assert got.stride() == truth.stride()
    pooled = cpu.affine_pool(z, folded, "silu")
    if shape[0]:
        assert_accurate("y", got, reference.affine_residual(z, folded, "silu", scale, residual), truth)
        mean = reference.affine_pool(z.double(), double(folded), "silu")  # type: ignore[arg-type]
        assert_accurate("mean", pooled, reference.affine_pool(z, folded, "silu"), mean)


BAD_CALLS = {
    "rank": (lambda x, w: cpu.depthwise(x[0], w, 1, (1, 1, 1, 1)), r"depthwise: x: expected rank 4"),
    "channels": (
        lambda x, w: cpu.depthwise(x, w[:5], 1, (1, 1, 1, 1)),
        r"weight: expected shape \[8, 1, 3, 3\]",
    ),
    "kernel": (
        lambda x, w: cpu.depthwise(x, w[..., :2, :2], 1, (1, 1, 1, 1)),
        "expected kernel size 3, 5 or 7",
    ),
    "stride": (lambda x, w: cpu.depthwise(x, w, 3, (1, 1, 1, 1)), "stride: expected 1 or 2, got 3"),
    "dtype": (lambda x, w: cpu.depthwise(x.half(), w, 1, (1, 1, 1, 1)), "expected float32 or bfloat16"),
    "padding": (lambda x, w: cpu.depthwise(x, w, 1, (1, -1, 1, 1)), "padding: expected numbers >= 0"),
    "too-small": (lambda x, w: cpu.depthwise(x[..., :2, :2], w, 1, (0, 0, 0, 0)), "after padding, got 2 x 2"),
    "affine": (
        lambda x, w: cpu.depthwise(x, w, 1, (1, 1, 1, 1), affine=affine(9)),
        r"scale: expected shape \[8\], got \[9\]",
    ),
    "residual": (lambda x, w: cpu.affine_residual(x, None, residual=x[:, :4]), "residual: expected shape"),
    "weights": (
        lambda x, w: cpu.squeeze_excite(torch.randn(2, 8), torch.randn(4, 9), None, torch.randn(8, 4), None),
        r"w1: expected shape \[4, 8\]",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(name: str) -> None:
    call, message = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=message):
        call(image(2, 8, 6, 6), torch.randn(8, 1, 3, 3))


def test_refusals_give_a_reason() -> None:
    device = torch.device("cpu")
    assert cpu.can_run("depthwise", device, torch.float32, kernel_size=5, stride=2, stats=False) == (True, "")
    for op, where, dtype, facts, words in [
        ("depthwise", device, torch.float64, {}, "neither float32 nor bfloat16"),
        ("depthwise", device, torch.float32, {"kernel_size": 9}, "not 9"),
        ("depthwise", device, torch.float32, {"stride": 3}, "not 3"),
        ("depthwise_backward", device, torch.float64, {}, "neither float32 nor bfloat16"),
        ("batch_norm_finalize", device, torch.float64, {}, "neither float32 nor bfloat16"),
        ("depthwise", torch.device("meta"), torch.float32, {}, "meta"),
    ]:
        ok, reason = cpu.can_run(op, where, dtype, **facts)
        assert not ok and words in reason


def test_environment_variable_chooses_the_instruction_set(isa: str) -> None:
    code = "from effnet_fast.backend import native; print(native.ops().cpu_isa(-1))"
    environment = {**os.environ, "EFFNET_FAST_CPU_ISA": isa}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(out.stdout) == native.ISAS.index(isa)
