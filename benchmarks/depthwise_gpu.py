"""Depthwise kernels on the GPU, shape by shape: CUDA C++, Triton, and what PyTorch offers. Kernel times only, no autograd.

    python -m benchmarks.depthwise_gpu --models b0 b4 --batch 64 --dtype bf16 [--markdown FILE]

Forward: convolution, affine, SiLU and pool (PyTorch: convolution, BatchNorm, SiLU, mean). Backward: both gradients of the convolution alone.
Every shape is compared with the reference before it is timed. Medians with an L2 cache of zeros before each run; `bandwidth` is the
share of a copy's bytes per second that reading and writing every tensor once amounts to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shapes import Shape, shapes
from effnet_fast.backend import cuda, reference
from effnet_fast.records import DepthwiseIncoming, Source
from effnet_fast.tolerance import assert_accurate
from effnet_fast.types import Affine

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: Larger than any L2 cache.
FLUSH_BYTES = 256 * 2**20


def timed(run: Callable[[], Any], repeats: int, flush: Tensor) -> float:
    """Median microseconds on the GPU, the L2 cache cold."""
    for _ in range(3):
        run()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for start, end in events:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) * 1e3 for start, end in events)
    return times[len(times) // 2]


def copy_bandwidth(flush: Tensor) -> float:
    """Bytes a microsecond, read and written, of copying 2 GB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source), 20, flush)


def _stock(
    shape: Shape, x: Tensor, weight: Tensor, affine: Affine, layout: torch.memory_format
) -> Callable[[], Any]:
    x = x.contiguous(memory_format=layout)
    scale, shift = (v.to(x.dtype) for v in affine)
    mean, var = torch.zeros_like(affine.scale), torch.ones_like(affine.scale)

    def run() -> Tensor:
        z = F.conv2d(x, weight, stride=shape.stride, padding=shape.kernel_size // 2, groups=shape.in_channels)
        return F.silu(F.batch_norm(z, mean, var, scale.float(), shift.float(), eps=0.0)).mean(dim=(2, 3))

    return run


def _stock_backward(
    shape: Shape, dy: Tensor, x: Tensor, weight: Tensor, layout: torch.memory_format
) -> Callable[[], Any]:
    dy, x = dy.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    pad = shape.kernel_size // 2

    def run() -> Any:
        return torch.ops.aten.convolution_backward(
            *(dy, x, weight, None, [shape.stride] * 2, [pad] * 2, [1, 1], False, [0, 0], shape.in_channels),
            [True, True, False],
        )

    return run


def providers(shape: Shape, x: Tensor, backward: bool) -> tuple[dict[str, Callable[[], Any]], float]:
    """What is timed, by name, and the bytes of every tensor once."""
    from effnet_fast.kernels import launchers as triton

    half = shape.kernel_size // 2
    weight = torch.randn(shape.in_channels, 1, shape.kernel_size, shape.kernel_size, device="cuda").to(
        x.dtype
    )
    args = (x, weight, shape.stride, (half,) * 4)
    runs: dict[str, Callable[[], Any]] = {}
    if backward:
        dy = torch.randn_like(reference.depthwise(*args).y)
        records = DepthwiseIncoming(dy), Source(x)
        for name, module in (("cuda", cuda), ("triton", triton)):
            runs[name] = lambda module=module: module.depthwise_backward(*records, *args[1:])  # type: ignore[misc]
        for name, layout in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
            runs[f"pytorch {name}"] = _stock_backward(shape, dy, x, weight, layout)
        truth = reference.depthwise_backward(*records, *args[1:])
        assert_accurate(f"{shape.name}: dx", runs["cuda"]().dx, truth.dx, truth.dx.double())
        moved = dy.numel() + 2 * x.numel()
    else:
        affine = Affine(
            torch.rand(shape.in_channels, device="cuda"), torch.randn(shape.in_channels, device="cuda")
        )
        fused: dict[str, Any] = {"affine": affine, "act": "silu", "pool": True}
        for name, module in (("cuda", cuda), ("triton", triton)):
            runs[name] = lambda module=module: module.depthwise(*args, **fused)  # type: ignore[misc]
        for name, layout in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
            runs[f"pytorch {name}"] = _stock(shape, x, weight, affine, layout)
        truth = reference.depthwise(*args, **fused)
        assert_accurate(f"{shape.name}: y", runs["cuda"]().y, truth.y, truth.y.double())
        moved = x.numel() + truth.y.numel()
    return runs, moved * x.element_size()


def rows(arguments: argparse.Namespace) -> list[str]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    bandwidth = copy_bandwidth(flush)
    print(f"{torch.cuda.get_device_name()}: copy {bandwidth / 1e6:.2f} TB/s")
    lines: list[str] = []
    for backward in (False, True):
        for shape in shapes("depthwise", arguments.models):
            size = (arguments.batch, shape.in_channels, shape.size, shape.size)
            x = torch.randn(size, device="cuda").to(
                DTYPES[arguments.dtype], memory_format=torch.channels_last
            )
            runs, moved = providers(shape, x, backward)
            times = {name: timed(run, arguments.repeats, flush) for name, run in runs.items()}
            if not lines:
                lines += [f"| pass | shape | {' | '.join(f'{n}, us' for n in times)} | bandwidth |"]
                lines += ["|---|---|" + "---|" * (len(times) + 1)]
            cells = " | ".join(f"{time:.1f}" for time in times.values())
            share = moved / times["cuda"] / bandwidth
            lines.append(
                f"| {'backward' if backward else 'forward'} | {shape.name} | {cells} | {share:.2f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["b0"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("depthwise_gpu: no CUDA device")
    ok, reason = cuda.can_run("depthwise", torch.device("cuda"), DTYPES[arguments.dtype])
    if not ok:
        raise SystemExit(f"depthwise_gpu: {reason}")
    torch.backends.cudnn.benchmark = True
    lines = rows(arguments)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
