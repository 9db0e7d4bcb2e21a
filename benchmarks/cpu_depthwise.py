"""The fused CPU depthwise kernel beside PyTorch, for every distinct depthwise shape of a model; prints Markdown.

    python benchmarks/cpu_depthwise.py --models b0 b4 --dtypes fp32 bf16 --threads 1 --inductor

All providers of a shape are timed in turn, round after round, so that they share the machine's moods; the
figure is the fastest round. PyTorch computes convolution, BatchNorm and SiLU; ours also the pooled mean.
A ratio below 1 is a loss.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effnet_fast.backend import cpu, reference
from effnet_fast.bench.blocks import network
from effnet_fast.models.config import VARIANTS
from effnet_fast.types import Affine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Shape(NamedTuple):
    channels: int
    size: int
    kernel: int
    stride: int

    @property
    def out_size(self) -> int:
        return math.ceil(self.size / self.stride)

    def megabytes(self, dtype: torch.dtype) -> float:
        return self.channels * (self.size**2 + self.out_size**2) * dtype.itemsize / 1e6

    def predicted(self, dtype: torch.dtype, gigahertz: float, threads: int) -> float:
        """Microseconds of arithmetic on a core with one 512-bit FMA a cycle; docs/kernels/depthwise.md explains it."""
        vectors_in, vectors_out = (self.channels * size**2 / 16 for size in (self.size, self.out_size))
        conversion = 3 if dtype == torch.bfloat16 else 0
        return (vectors_out * (self.kernel**2 + 16) + vectors_in * conversion) / (1e3 * gigahertz * threads)


def shapes(model: str) -> Iterator[Shape]:
    """Distinct depthwise shapes in the order the model meets them."""
    found = (Shape(b.channels, b.size, b.kernel_size, b.stride) for b in network(model).blocks)
    yield from dict.fromkeys(found)


def providers(shape: Shape, dtype: torch.dtype, inductor: bool) -> dict[str, Callable[[], object]]:
    padding = shape.kernel // 2
    conv = nn.Conv2d(
        *(shape.channels, shape.channels, shape.kernel),
        stride=shape.stride,
        padding=padding,
        groups=shape.channels,
        bias=False,
    )
    norm = nn.BatchNorm2d(shape.channels)
    with torch.no_grad():
        for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            vector.uniform_(0.5, 1.5)
    module = nn.Sequential(conv, norm, nn.SiLU()).eval().to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(1, shape.channels, shape.size, shape.size).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    vectors = [v.detach().float() for v in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    affine = cpu.batch_norm_fold(*vectors, norm.eps).affine
    weight = conv.weight.detach().contiguous()

    def ours() -> Tensor:
        return cpu.depthwise(x, weight, shape.stride, (padding,) * 4, affine=affine, act="silu", pool=True).y

    def eager() -> Tensor:
        z = F.conv2d(x, conv.weight, stride=shape.stride, padding=padding, groups=shape.channels)
        z = F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return F.silu(z, inplace=True)

    verify(ours(), eager(), x, weight, shape, affine)
    found: dict[str, Callable[[], object]] = {"ours": ours, "eager": eager}
    if inductor:
        torch._dynamo.reset()
        compiled = torch.compile(module)
        found["inductor"] = lambda: compiled(x)
    return found


def verify(y: Tensor, eager: Tensor, x: Tensor, weight: Tensor, shape: Shape, affine: Affine) -> None:
    """No figure without a right answer on the same data."""
    exact = Affine(affine.scale.double(), affine.shift.double())
    padding = (shape.kernel // 2,) * 4
    truth = reference.depthwise(
        x.double(), weight.double(), shape.stride, padding, affine=exact, act="silu"
    ).y
    error, allowed = ((t.double() - truth).abs().max().item() for t in (y, eager))
    if error > 2 * allowed + 1e-6:
        sys.exit(f"cpu_depthwise: {shape}: error {error:.2e}, eager's is {allowed:.2e}")


def fastest(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Microseconds of the fastest call of each provider, providers in turn for about ``seconds``."""
    best = dict.fromkeys(calls, math.inf)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            call()
            for _ in range(5):
                start = time.perf_counter()
                call()
                best[name] = min(best[name], 1e6 * (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["b0", "b4"], choices=VARIANTS)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="per shape")
    parser.add_argument("--gigahertz", type=float, default=3.7, help="clock of the prediction")
    parser.add_argument(
        "--inductor", action="store_true", help="also torch.compile with freezing (slow to compile)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch._inductor.config.freezing = True
    names = ["eager"] + ["inductor"] * options.inductor

    with torch.inference_mode():
        for dtype_name in options.dtypes:
            dtype = DTYPES[dtype_name]
            print(
                f"\n{dtype_name}, batch 1, threads: {options.threads}, torch {torch.__version__}, microseconds\n"
            )
            print(
                "| model | C | H=W | k | stride | MB | predicted | ours |",
                *(f" {n} | {n}/ours |" for n in names),
            )
            print("|---|--:|--:|--:|--:|--:|--:|--:|" + "--:|--:|" * len(names))
            done: set[Shape] = set()
            ratios: dict[str, list[float]] = {name: [] for name in names}
            for model in options.models:
                for shape in shapes(model):
                    if shape in done:
                        continue
                    done.add(shape)
                    calls = providers(shape, dtype, options.inductor)
                    best = fastest(calls, options.seconds)
                    cells = [model, *map(str, shape), f"{shape.megabytes(dtype):.2f}"]
                    cells += [
                        f"{shape.predicted(dtype, options.gigahertz, options.threads):.0f}",
                        f"{best['ours']:.0f}",
                    ]
                    for name in names:
                        ratios[name].append(best[name] / best["ours"])
                        cells += [f"{best[name]:.0f}", f"{ratios[name][-1]:.2f}"]
                    print("| " + " | ".join(cells) + " |", flush=True)
            for name, all_ratios in ratios.items():
                mean = math.exp(sum(map(math.log, all_ratios)) / len(all_ratios))
                losses = sum(ratio < 1 for ratio in all_ratios)
                print(f"\n{name}/ours: geometric mean {mean:.2f}, losses {losses} of {len(all_ratios)}")


if __name__ == "__main__":
    main()
