"""The CPU backend's training kernels together: memory, threads, caches, a block's step, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_cases import DTYPES, affine, assert_within_twice, bn_grad, compare, cpu, image, norm
from patched_blocks import BLOCKS, pair
from torch import Tensor

import effnet_fast
from effnet_fast.backend import native
from effnet_fast.backend.cpu.entry_points import kernels

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)


def test_every_output_is_written(poisoned_native_memory: None) -> None:
    for dtype in DTYPES:
        x, dy, z = (image(2, 21, *size, dtype) for size in ((9, 7), (5, 4), (5, 4)))
        weight = torch.randn(21, 1, 3, 3).to(dtype)
        before = {"in_affine": affine(21), "in_act": "silu", "in_norm": norm(21)}
        out = cpu.depthwise_backward(
            dy, x, weight, 2, (1, 1, 1, 1), z=z, act="silu", affine=affine(21), grad=bn_grad(21), **before
        )
        parts = [*out, cpu.depthwise(x, weight, 2, (1, 1, 1, 1), stats=True).stats]
        dense = (torch.randn(5, 21) / 4).to(dtype)
        p = image(2, 5, 9, 7, dtype)
        parts += cpu.pointwise_backward(p, x, dense, z=p, grad=bn_grad(5), gate=torch.rand(2, 21), **before)
        forward = cpu.pointwise(x, dense, stats=True)
        parts += [forward.y, forward.stats, cpu.batch_norm_reduce(x, x, norm(21))]
        assert all(t is not None and t.isfinite().all() for t in parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_odd_addresses_and_other_layouts(dtype: torch.dtype, offset: int) -> None:
    def odd(n: int, c: int, h: int, w: int) -> Tensor:
        buffer = torch.full((offset + n * c * h * w,), float("nan"), dtype=dtype)
        view = buffer[offset:].view(n, h, w, c).permute(0, 3, 1, 2)
        return view.copy_(torch.randn(n, c, h, w))

    x, z = odd(2, 19, 9, 11), odd(2, 19, 5, 6)
    facts = {"z": z, "affine": affine(19), "act": "silu", "grad": bn_grad(19)}
    facts |= {"in_affine": affine(19), "in_act": "silu", "in_norm": norm(19)}
    for dy in (
        odd(2, 19, 5, 6),
        torch.randn(2, 19, 5, 6).to(dtype),
        torch.ones((), dtype=dtype).expand(2, 19, 5, 6),
    ):
        args = (dy, x, torch.randn(19, 1, 5, 5).to(dtype), 2, (2, 2, 2, 2))
        compare("depthwise_backward", args, facts)
        compare("pointwise_backward", (dy, z, torch.randn(19, 19).to(dtype)), {}, ("dx", "dweight", "sums"))


def run_all() -> list[Tensor]:
    """One call of everything that is threaded, on shapes with many tasks."""
    torch.manual_seed(3)
    out: list[Tensor | None] = []
    for dtype in DTYPES:
        x, dy, z = (image(3, 70, *size, dtype) for size in ((40, 37), (20, 19), (20, 19)))
        weight = torch.randn(70, 1, 5, 5).to(dtype)
        before = {"in_affine": affine(70), "in_act": "silu", "in_norm": norm(70)}
        facts = {"z": z, "affine": affine(70), "act": "silu", "grad": bn_grad(70), "gate": torch.rand(3, 70)}
        out += cpu.depthwise_backward(dy, x, weight, 2, (2, 2, 2, 2), **facts, **before)
        out += cpu.depthwise(x, weight, 2, (2, 2, 2, 2), stats=True)
        out += [kernels().channel_stats(x), cpu.batch_norm_reduce(dy, z, norm(70))]
        out += kernels().gate_and_norm_sums(dy, z, *affine(70), 1, *norm(70), torch.rand(3, 70), True)
        out.append(kernels().batch_norm_input_grad(dy, z, *bn_grad(70), torch.rand(3), None, None, 0))
    # The products; fp32 and both of them wide, so that the native ones run.
    wide, narrow, gate = image(3, 70, 20, 19), image(3, 40, 20, 19), torch.rand(3, 70)
    weight = torch.randn(40, 70)
    out += kernels().pointwise_forward(wide, weight, *affine(70), 1, gate, True)
    facts = {"z": narrow, "grad": bn_grad(40), "row_scale": torch.rand(3)}
    before = {"in_affine": affine(70), "in_act": "silu", "in_norm": norm(70), "gate": gate}
    out += cpu.pointwise_backward(narrow, wide, weight, **facts, **before)
    facts = {"z": wide, "grad": bn_grad(70), "residual_grad": narrow}
    out += cpu.pointwise_backward(wide, narrow, weight.t(), **facts)
    out += cpu.squeeze_excite_backward(gate, gate, torch.randn(900, 70), None, torch.randn(70, 900), None)
    return [t for t in out if t is not None]


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


def test_results_too_large_for_caches_are_those_of_single_images() -> None:
    """From 16 MB on, results are stored in another way (csrc/cpu/isa/streaming.h); an image alone is below that."""
    x, narrow = image(2, 32, 256, 260), image(2, 8, 256, 260)
    assert x.numel() > 4 << 20 > x[:1].numel()
    stencil, matrix, vectors = torch.randn(32, 1, 3, 3), torch.randn(32, 8), bn_grad(8)
    before = {"in_affine": affine(32), "in_act": "silu", "in_norm": norm(32)}

    def run(x: Tensor, narrow: Tensor) -> list[Tensor | None]:
        pad = (1, 1, 1, 1)
        return [
            cpu.depthwise(x, stencil, 1, pad, stats=True).y,
            cpu.depthwise_backward(x, x, stencil, 1, pad, **before).dx,
            cpu.pointwise(narrow, matrix, stats=True).y,
            cpu.pointwise_backward(narrow, x, matrix.t(), z=narrow, grad=vectors, **before).dx,
            cpu.pointwise_backward(narrow, x, matrix.t(), residual_grad=x, need_dw=False).dx,
        ]

    images = [run(x[i : i + 1], narrow[i : i + 1]) for i in range(2)]
    for i, joint in enumerate(run(x, narrow)):
        assert joint is not None and torch.equal(joint, torch.cat([image[i] for image in images]))


def training_step(block: torch.nn.Module, x: Tensor, dtype: torch.dtype, draw: int) -> dict[str, Tensor]:
    """Output and every gradient of one step with its own random ``dy``, and the buffers after it."""
    block.train().zero_grad()
    data = x.to(dtype, copy=True).requires_grad_()
    torch.manual_seed(7)
    y = block(data)
    torch.manual_seed(8 + draw)
    y.backward(torch.randn(y.shape).to(dtype))
    assert data.grad is not None
    named = {"y": y.detach(), "x": data.grad, **{k: p.grad for k, p in block.named_parameters()}}
    named |= {k: b.clone() for k, b in block.named_buffers() if b.is_floating_point()}
    return named


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_step_of_a_patched_block(name: str) -> None:
    """fp32, on the cpu backend by itself: output, every gradient and buffer, against the stock block in fp64.

    Largest errors over 8 steps: squeeze-and-excite has gradients of two values here, whose rounding errors in one
    step are a matter of luck, PyTorch's as well as ours.
    """
    stock, patched, x = pair(name, torch.float32)
    truth_block, _, _ = pair(name)
    truth_block.load_state_dict(stock.state_dict())
    steps = []
    for draw in range(8):
        data = x if draw == 0 else torch.randn_like(x)
        blocks = ((patched, torch.float32), (stock, torch.float32), (truth_block, torch.float64))
        steps.append([training_step(block, data, dtype, draw) for block, dtype in blocks])
    report = effnet_fast.report(patched)
    assert report.rows and all(row.state == "fused" and row.backend == "cpu" for row in report.rows), str(
        report
    )
    for key in steps[0][0]:
        got, baseline, truth = (torch.stack([step[i][key] for step in steps]) for i in range(3))
        assert_within_twice(f"{name}: {key}", got, baseline, truth, torch.float32)


BAD_CALLS: dict[str, tuple[Any, str]] = {
    "dy-shape": (
        lambda x, w: cpu.depthwise_backward(x[:, :, :5], x, w, 1, (1, 1, 1, 1)),
        r"depthwise_backward: incoming.dy: expected shape \[2, 8, 6, 6\]",
    ),
    "dy-dtype": (
        lambda x, w: cpu.depthwise_backward(x.bfloat16(), x, w, 1, (1, 1, 1, 1)),
        "incoming.dy: expected the dtype of the other tensors",
    ),
    "kernel": (
        lambda x, w: cpu.depthwise_backward(x, x, w[..., :2, :2], 1, (1, 1, 1, 1)),
        "expected kernel size 3, 5 or 7",
    ),
    "in_norm": (
        lambda x, w: cpu.depthwise_backward(x, x, w, 1, (1, 1, 1, 1), in_affine=affine(8)),
        "source.norm: expected vectors",
    ),
    "reduce": (
        lambda x, w: cpu.batch_norm_reduce(x[:1], x, norm(8)),
        r"batch_norm_reduce: dy: expected shape",
    ),
    "stats-rank": (lambda x, w: kernels().channel_stats(x[0]), "channel_stats: z: expected rank 4"),
    "product-weight": (
        lambda x, w: kernels().pointwise_forward(x, torch.randn(4, 7), None, None, 0, None, False),
        r"pointwise_forward: weight: expected shape \[4, 8\], got \[4, 7\]",
    ),
    "product-dtype": (
        lambda x, w: kernels().pointwise_forward(x, torch.randn(4, 8).bfloat16(), None, None, 0, None, False),
        "pointwise_forward: weight: expected float32",
    ),
    "product-norm": (
        lambda x, w: kernels().pointwise_backward(
            *([x, *(None,) * 6], [x, *affine(8), None, None, None], 1, torch.randn(8, 8), None, True, True)
        ),
        "pointwise_backward: source.norm: expected vectors",
    ),
    "product-dy": (
        lambda x, w: cpu.pointwise_backward(x, x, torch.randn(4, 8)),
        r"pointwise_backward: incoming.dy: expected shape \[2, 4, 6, 6\], got \[2, 8, 6, 6\]",
    ),
    "finalize-stats": (
        lambda x, w: cpu.batch_norm_finalize(torch.ones(2, 2, 8), None, None, 1e-5),
        r"batch_norm_finalize: stats: expected shape \[P, 3, C\], got \[2, 2, 8\]",
    ),
    "finalize-weight": (
        lambda x, w: cpu.batch_norm_finalize(torch.ones(2, 3, 8), torch.ones(7), None, 1e-5),
        r"batch_norm_finalize: weight: expected shape \[8\], got \[7\]",
    ),
    "backward-finalize": (
        lambda x, w: kernels().batch_norm_backward_finalize(torch.ones(1, 2, 8), 4, torch.ones(4, 8), True),
        r"batch_norm_backward_finalize: stats: expected shape \[5, C\], got \[4, 8\]",
    ),
    "gate-sums": (
        lambda x, w: cpu.gate_batch_norm_sums(torch.ones(5, 2, 8), torch.ones(3, 8), None),
        r"gate_batch_norm_sums: gate: expected shape \[2, 8\], got \[3, 8\]",
    ),
    "excite-backward": (
        lambda x, w: cpu.squeeze_excite_backward(
            *(torch.ones(2, 8), torch.ones(2, 8), torch.ones(4, 8), None, torch.ones(8, 5), None)
        ),
        r"squeeze_excite_backward: w2: expected shape \[8, 4\], got \[8, 5\]",
    ),
    "gate": (
        lambda x, w: kernels().gate_and_norm_sums(x, x, *affine(8), 1, *norm(8), torch.rand(2, 7), True),
        r"gate: expected shape \[2, 8\], got \[2, 7\]",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(name: str) -> None:
    call, message = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=message):
        call(image(2, 8, 6, 6), torch.randn(8, 1, 3, 3))
