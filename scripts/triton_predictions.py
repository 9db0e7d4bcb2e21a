"""What the Triton kernels should take on an H200, from counted bytes, counted operations and compiled resources.

Part of docs/kernels/triton.md (see triton_compile_table.py). Predictions: nothing here was measured. The launches
are those of one block of EfficientNet-B0, an inference and a training step, recorded on meta tensors; bytes are what
``effnet_fast.traffic`` counts, operations follow from the arguments of each launch, registers from compiling it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple
from unittest import mock

import torch
from effnet_fast.kernels import coverage, launchers
from effnet_fast.kernels.launch import intercept
from effnet_fast.kernels.offline import Launch, Report, compile_launch

from effnet_fast import tuner, tuning
from effnet_fast.models.config import Stage
from effnet_fast.ops import mbconv_kernels as blocks
from effnet_fast.traffic import count_traffic
from effnet_fast.types import BatchNormGrad

STAGE, SIZE, BATCH, DTYPE = Stage(6, 5, 1, 40, 40, 1), 28, 256, torch.bfloat16

# H200: copy bandwidth and practical rates; the special-function units have an eighth of the FMA units' lanes.
BANDWIDTH, FMA_FLOPS, TENSOR_FLOPS, PROCESSORS = 4.3e12, 60e12, 750e12, 132
SPECIAL_OPS = FMA_FLOPS / 2 / 8
#: A launch after another in a stream or graph, and the time from a read's issue to its data under load.
LAUNCH_SECONDS, LATENCY_SECONDS = 2.5e-6, 700e-9
REGISTERS, WARPS, BLOCKS, SHARED = 65536, 64, 32, 228 << 10

# FP32 instructions per element; each counts as an FMA, 2 FLOP, whose slot it takes.
AFFINE, SILU, SLOPE, BN_GRAD, STATS, HAT = 1, 6, 9, 4, 6, 2


HEAD = f"""
## Predictions for an H200

Nothing here was measured. One block of B0 ({STAGE.kernel_size}x{STAGE.kernel_size}, 40 -> 240 -> 40 channels,
{SIZE}x{SIZE}) at batch {BATCH} in bfloat16, an inference and a training step, the first launch of each kernel;
`channel_stats` and `batch_norm_act_grad`, which only stems use, on the 240 channels.

* Bytes: what a launch must read + write once (`effnet_fast.traffic`), per pixel, or in all where it sees no images.
* FMA, tensor, special: GFLOP on the FMA units (a lone addition takes an FMA's slot), GFLOP on tensor cores, 10^9
  exponentials and reciprocals (2 a SiLU), with what tiles and taps compute again.
* Warps: on a multiprocessor, from registers and shared memory as compiled for sm_90. In flight: KiB that these ask
  memory for in one step of their loop.
* Time: the longest of memory ({BANDWIDTH / 1e12:.1f} TB/s), latency (reads: what is in flight arrives every
  {LATENCY_SECONDS * 1e9:.0f} ns), FMA ({FMA_FLOPS / 1e12:.0f} TFLOP/s), special functions
  ({SPECIAL_OPS / 1e12:.2f} * 10^12/s), tensor cores ({TENSOR_FLOPS / 1e12:.0f} TFLOP/s) and launch
  ({LAUNCH_SECONDS * 1e6:.1f} us). Share: of the copy bandwidth. Left out: integer work, barriers and the issue of
  loads, of which the depthwise kernels have about one a multiply-add.
"""

TABLE = """
| kernel | bytes | FMA | tensor | special | warps | in flight | us | bound | share |
|---|--:|--:|--:|--:|--:|--:|--:|---|--:|
"""


class Work(NamedTuple):
    """Of one launch. Whatever a tile computes again for another tile counts again."""

    fma: float = 0  # FP32 instructions
    special: float = 0  # exponentials and reciprocals, two a SiLU
    tensor: float = 0  # multiply-adds
    step: float = (
        0  # elements of image tensors that a block asks memory for in one step; taps find theirs in a cache
    )


class Prediction(NamedTuple):
    name: str
    read: int
    written: int
    work: Work
    warps: int  # resident on a multiprocessor
    in_flight: float  # bytes a multiprocessor has asked for
    seconds: float
    bound: str


def _silu(a: dict[str, Any], name: str = "ACT") -> bool:
    return a.get(name, "none") == "silu"


def _channels(a: dict[str, Any]) -> int:
    return a["units"] * a["UNIT"]


def _pointwise(a: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """(rows, cin, cout, elements of the wide and of the narrow side) of a 1x1 convolution."""
    rows, cin, cout = (
        a["segments"] * a["length"],
        a["cin_units"] * a["CIN_UNIT"],
        a["cout_units"] * a["COUT_UNIT"],
    )
    return rows, cin, cout, rows * cin, rows * cout


def _forward(a: dict[str, Any]) -> Work:
    rows, cin, cout, x, y = _pointwise(a)
    x *= a["col_tiles"]
    fma = x * ((a["in_scale"] is not None) * AFFINE + _silu(a, "IN_ACT") * SILU + (a["gate"] is not None))
    fma += y * ((a["scale"] is not None) * AFFINE + _silu(a) * SILU + (a["stats"] is not None) * STATS)
    special = 2 * (x * _silu(a, "IN_ACT") + y * _silu(a))
    return Work(fma, special, rows * cin * cout, a["BLOCK_M"] * a["BLOCK_K"] * (a["num_stages"] - 1 or 1))


def _backward(a: dict[str, Any]) -> Work:
    """dgrad, wgrad or both: which tiles make dz or the activation again depends on the kernel."""
    rows, cin, cout, x, y = _pointwise(a)
    dgrad, wgrad = "dx" in a, "dweight" in a
    y *= a["cin_tiles"] if not dgrad else a["col_tiles"]
    x *= a["cout_tiles"] if not dgrad else 1
    sums, acts = a.get("sums") is not None, _silu(a, "IN_ACT")
    fma = y * BN_GRAD + x * (acts * (AFFINE + SILU + 1) + sums * (SLOPE + 8))
    # With both, the compiler shares the exponential of SiLU and its derivative.
    special = 2 * x * (acts or sums)
    tile = 2 * a["BLOCK_M"] * a["BLOCK_K"] + (wgrad or sums) * a["BLOCK_M"] * a["BLOCK_N"]
    return Work(fma, special, rows * cin * cout * (dgrad + wgrad), tile)


def _depthwise(a: dict[str, Any]) -> Work:
    y, taps = a["segments"] * a["length"] * _channels(a), a["K"] ** 2
    fma = y * taps * (1 + (a["in_scale"] is not None) * AFFINE + _silu(a, "IN_ACT") * SILU)
    fma += y * ((a["scale"] is not None) * AFFINE + _silu(a) * SILU + (a["stats"] is not None) * STATS)
    special = 2 * y * (taps * _silu(a, "IN_ACT") + _silu(a))
    return Work(fma, special, step=a["BLOCK_M"] * a["BLOCK_N"])


def _depthwise_dgrad(a: dict[str, Any]) -> Work:
    x, taps = a["segments"] * a["length"] * _channels(a), a["K"] ** 2
    inner = a["in_scale"] is not None
    fma = x * (taps * (1 + BN_GRAD + 2 + _silu(a) * (AFFINE + SLOPE)) + inner * (AFFINE + SLOPE + HAT + 2))
    special = 2 * x * (taps * _silu(a) + inner * _silu(a, "IN_ACT"))
    return Work(fma, special, step=2 * a["BLOCK_M"] * a["BLOCK_N"])


def _depthwise_wgrad(a: dict[str, Any]) -> Work:
    y, taps = a["segments"] * a["length"] * _channels(a), a["K"] * a["TAPS"]
    fma = y * (a["K"] * (BN_GRAD + 2 + _silu(a) * (AFFINE + SLOPE)) + taps * (1 + AFFINE + SILU))
    special = 2 * y * (a["K"] * _silu(a) + taps * _silu(a, "IN_ACT"))
    return Work(fma, special, step=3 * a["BLOCK_M"] * a["BLOCK_N"])


def _elementwise(instructions: int, tensors: int) -> Callable[[dict[str, Any]], Work]:
    def work(a: dict[str, Any]) -> Work:
        n = a.get("segments", 1) * a["length"] * _channels(a)
        return Work(
            n * (instructions + _silu(a) * SILU), 2 * n * _silu(a), step=tensors * a["BLOCK_M"] * a["BLOCK_N"]
        )

    return work


#: Kernels that see the images. The rest works on vectors: its operations take no time beside the launch.
WORK: dict[str, Callable[[dict[str, Any]], Work]] = {
    "pointwise_fwd": _forward,
    "pointwise_dgrad": _backward,
    "pointwise_wgrad": _backward,
    "pointwise_backward": _backward,
    "depthwise_fwd": _depthwise,
    "depthwise_dgrad": _depthwise_dgrad,
    "depthwise_wgrad": _depthwise_wgrad,
    "batch_norm_reduce": _elementwise(HAT + 2, 2),
    "batch_norm_act_grad": _elementwise(BN_GRAD + SLOPE - SILU + AFFINE, 2),
    "channel_stats": _elementwise(STATS, 1),
    "affine_pool": _elementwise(AFFINE + 1, 1),
    "affine_residual": _elementwise(AFFINE + 2, 2),
}


def _named(launch: Launch) -> dict[str, Any]:
    return {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.meta}


def _label(launch: Launch, step: str) -> str:
    a = _named(launch)
    if launch.name.startswith("pointwise"):
        _, cin, cout, *_ = _pointwise(a)
        return f"`{launch.name}` {cin} -> {cout}{step}"
    return f"`{launch.name}`{step}" if launch.name == "depthwise_fwd" else f"`{launch.name}`"


def record() -> dict[str, tuple[Launch, int, int]]:
    """Every kernel of the block's steps and of the stem's two: launch, bytes read, bytes written; the first of each."""
    found: dict[str, tuple[Launch, int, int]] = {}
    x, weights, settings = tuner.random_block(STAGE, SIZE, DTYPE, BATCH, torch.device("meta"))

    def step(suffix: str, run: Callable[[], object]) -> None:
        caught: list[Launch] = []
        with intercept(lambda *launch: caught.append(Launch(*launch))), count_traffic() as traffic:
            run()
        for launch, (_, read, written) in zip(caught, traffic.launches, strict=True):
            found.setdefault(_label(launch, suffix), (launch, read, written))

    def train() -> None:
        y, saved = blocks.training_forward(x, weights, settings, None)
        needs = blocks.Needs(True, True, True, True)
        blocks.training_backward(torch.empty_like(y), x, saved, weights, settings, None, needs)

    e = torch.empty(BATCH, 240, SIZE, SIZE, dtype=DTYPE, device="meta", memory_format=torch.channels_last)
    vectors = torch.empty(6, 240, device="meta").unbind()
    runner = mock.patch.object(blocks, "_runner", return_value=lambda op, **facts: getattr(launchers, op))
    with runner, mock.patch.object(tuning, "architecture", return_value="sm_90"):
        tuning.forget()
        step(", inference", lambda: blocks.inference(x, weights, settings, None))
        step(", training", train)
        step("", lambda: launchers.channel_stats(e))
        grad = BatchNormGrad(*vectors[:4])
        step("", lambda: launchers.batch_norm_act_grad(e, e, grad, affine=vectors[4:], act="silu"))  # type: ignore[arg-type]
    tuning.forget()
    return found


def _compile(name: str) -> Report:
    return compile_launch(record()[name][0], 90)


def _resident(report: Report, warps: int) -> int:
    """Blocks that fit on a multiprocessor of sm_90."""
    registers = warps * 32 * math.ceil(report.registers / 8) * 8
    return min(REGISTERS // registers, WARPS // warps, BLOCKS, SHARED // (report.shared + 1024))


def _predict(name: str, launch: Launch, read: int, written: int, report: Report) -> Prediction:
    a = _named(launch)
    work = WORK[launch.name](a) if launch.name in WORK else Work()
    resident = _resident(report, a["num_warps"])
    in_flight = resident * work.step * DTYPE.itemsize
    times = {
        "memory": (read + written) / BANDWIDTH,
        # Nothing waits for what is written.
        "latency": read * LATENCY_SECONDS / (PROCESSORS * in_flight) if in_flight else 0.0,
        "FMA": 2 * work.fma / FMA_FLOPS,
        "special functions": work.special / SPECIAL_OPS,
        "tensor core": 2 * work.tensor / TENSOR_FLOPS,
        "launch": LAUNCH_SECONDS,
    }
    bound = max(times, key=lambda key: times[key])
    return Prediction(name, read, written, work, resident * a["num_warps"], in_flight, times[bound], bound)


def predict(workers: ProcessPoolExecutor) -> list[Prediction]:
    """In the order of the compile table."""
    launches = record()
    order = list(coverage.CASES)
    missing = set(order) - {launch.name for launch, _, _ in launches.values()}
    assert not missing, f"no prediction for {missing}"
    names = sorted(launches, key=lambda name: order.index(launches[name][0].name))
    reports = workers.map(_compile, names)
    return [_predict(name, *launches[name], report) for name, report in zip(names, reports, strict=True)]


def section(predictions: list[Prediction]) -> list[str]:
    """Lines of Markdown."""
    rows = BATCH * SIZE * SIZE
    lines = [*HEAD.splitlines(), *TABLE.splitlines()]
    for p in predictions:
        pixel = p.work.step > 0
        count = (
            f"{p.read / rows:.0f} + {p.written / rows:.0f}"
            if pixel
            else f"{(p.read + p.written) / 1e6:.2f} MB"
        )
        share = (p.read + p.written) / p.seconds / BANDWIDTH
        flight = f"{p.in_flight / 1024:.0f}" if pixel else "-"
        work = [f"{amount / 1e9:.1f}" for amount in (2 * p.work.fma, 2 * p.work.tensor, p.work.special)]
        cells = [count, *(work if pixel else "---"), str(p.warps), flight, f"{p.seconds * 1e6:.1f}", p.bound]
        lines.append(" | ".join([f"| {p.name}", *cells, f"{share:.0%} |"]))
    return lines
