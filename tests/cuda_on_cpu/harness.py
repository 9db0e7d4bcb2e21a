"""Compiles the CUDA kernels with g++ against the headers in include/ and runs them on tensors.

The compiled runner is kept in build/, keyed by its sources and flags. A batch of cases goes through one process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from by_name import ByName
from torch import Tensor

from effnet_fast.backend.reference import ACTIVATIONS
from effnet_fast.records import DepthwiseIncoming, Source
from effnet_fast.types import Affine, ConvGrad, ConvOut, Padding, RunningNorm, SqueezeExciteGrad

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

#: What each build is compiled with beyond the common flags.
FLAVOURS = {
    "plain": ["-O1"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-fsanitize=thread"],
}
COMMON = ["-std=c++20", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-tsan"]
STORAGE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

#: For every floating dtype, bytes before the data of a misaligned tensor.
MISALIGNMENT = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


def compiler() -> str | None:
    return shutil.which("g++")


def _sources(csrc: Path) -> list[Path]:
    return [*sorted(csrc.glob("cuda/*.cu")), HERE / "runner.cpp"]


def _key(csrc: Path, flags: Sequence[str]) -> str:
    digest = hashlib.sha256(" ".join(flags).encode())
    for pattern in ("cuda/*.cu*", "cuda/*.h", "common/*.h"):
        for path in sorted(csrc.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    for path in sorted([*HERE.glob("include/*"), HERE / "runner.cpp"]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build(flavour: str, csrc: Path = CSRC) -> Path:
    """The runner of one flavour, compiled if its sources changed; other sources than the package's may be given."""
    flags = [*COMMON, *FLAVOURS[flavour]]
    folder = ROOT / "build" / "cuda_on_cpu" / f"{flavour}-{_key(csrc, flags)}"
    runner = folder / "runner"
    if runner.exists():
        return runner
    folder.mkdir(parents=True, exist_ok=True)
    include = [f"-I{HERE / 'include'}", f"-I{csrc / 'cuda'}"]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.name}.o")
        _check_run([compiler() or "g++", *flags, *include, "-x", "c++", "-c", str(source), "-o", target])
        return target

    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, _sources(csrc)))
    partial = folder / "runner.partial"
    _check_run([compiler() or "g++", *flags, *objects, "-o", str(partial), "-pthread"])
    partial.rename(runner)
    return runner


def _check_run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


class Case(NamedTuple):
    """One call of the runner; ``decode`` turns its outputs (bytes) into what the op returns."""

    name: str
    integers: list[int]
    tensors: list[Tensor | None]
    misaligned: bool
    decode: Callable[[list[bytes]], Any]


def run(runner: Path, cases: Sequence[Case], folder: Path, *, check: bool = True) -> Any:
    """The decoded results of every case; with ``check`` false, the finished process instead."""
    requests, results = folder / "cases.bin", folder / "results.bin"
    with requests.open("wb") as out:
        for case in cases:
            words = [case.name, len(case.tensors), *case.integers]
            out.write((" ".join(map(str, words)) + "\n").encode())
            for tensor in case.tensors:
                if tensor is None:
                    out.write(b"-1 0\n")
                    continue
                data = _to_bytes(tensor)
                shift = MISALIGNMENT[tensor.dtype] if case.misaligned else 0
                out.write(f"{len(data)} {shift}\n".encode() + data)
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=1",
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
    }
    command = [str(runner), str(requests), str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    if not check:
        return done
    assert done.returncode == 0, f"runner ended with {done.returncode}:\n{done.stderr[-6000:]}"
    with results.open("rb") as stream:
        return [case.decode(_read_outputs(stream)) for case in cases]


def _read_outputs(stream: Any) -> list[bytes]:
    return [stream.read(int(stream.readline())) for _ in range(int(stream.readline()))]


def _to_bytes(tensor: Tensor) -> bytes:
    if tensor.dim() == 4:
        tensor = tensor.permute(0, 2, 3, 1)
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def _from_bytes(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.zeros(0, dtype=dtype)
    return flat.reshape(tuple(shape))


def _activation(tensor_or_name: str) -> int:
    return ACTIVATIONS.index(tensor_or_name)


def _shape(x: Tensor, weight: Tensor, stride: int, padding: Padding) -> tuple[list[int], int, int]:
    n, c, h, w = x.shape
    k = weight.shape[-1]
    left, right, top, bottom = padding
    out_h, out_w = (h + top + bottom - k) // stride + 1, (w + left + right - k) // stride + 1
    return [n, c, h, w, out_h, out_w, k, stride, left, top], out_h, out_w


def depthwise(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    in_affine: Affine | None = None,
    in_act: str = "none",
    affine: Affine | RunningNorm | None = None,
    act: str = "none",
    pool: bool = False,
    stats: bool = False,
    plan: int = -1,
    misaligned: bool = False,
) -> Case:
    """A case of ``reference.depthwise``."""
    shape, out_h, out_w = _shape(x, weight, stride, padding)
    n, c = x.shape[:2]
    shift = MISALIGNMENT[x.dtype] if misaligned else 0

    def decode(outputs: list[bytes]) -> ConvOut:
        y = _from_bytes(outputs[0], x.dtype, (n, out_h, out_w, c)).permute(0, 3, 1, 2)
        pooled = _from_bytes(outputs[1], torch.float32, (n, -1, c)) if pool and n * c else None
        if pool and not n * c:
            pooled = torch.zeros(n, c)
        return ConvOut(y, pooled, _from_bytes(outputs[2], torch.float32, (-1, 3, c)) if stats else None)

    norm = affine if isinstance(affine, RunningNorm) else (*(affine or (None, None)), None, None, 0.0)
    vectors = norm[:4]
    storage = [STORAGE[torch.float32 if v is None else v.dtype] for v in vectors]
    wide = int(weight.dtype == torch.float32)
    # Millionths: the runner reads integers.
    numbers = [STORAGE[x.dtype], _activation(in_act), _activation(act), int(pool), int(stats), plan, shift]
    numbers += [wide, *storage, round(norm[4] * 1e6)]
    tensors = [x, weight.flatten(), *(in_affine or (None, None)), *vectors]
    return Case("depthwise", shape + numbers, tensors, misaligned, decode)


def depthwise_backward(
    incoming: DepthwiseIncoming, source: Source, weight: Tensor, stride: int, padding: Padding, **options: Any
) -> Case:
    """A case of ``reference.depthwise_backward``."""
    lists = (incoming.tensors, ACTIVATIONS.index(incoming.act), source.tensors, ACTIVATIONS.index(source.act))
    return depthwise_backward_of_lists(*lists, weight, stride, padding, **options)


def depthwise_backward_of_lists(
    incoming: list[Tensor | None],
    act: int,
    source: list[Tensor | None],
    in_act: int,
    weight: Tensor,
    stride: int,
    padding: Padding,
    *,
    residual_grad: Tensor | None = None,
    need_dx: bool = True,
    need_dw: bool = True,
    plan: int = -1,
    misaligned: bool = False,
) -> Case:
    """:func:`depthwise_backward` of the records' tensors, as the native op takes them."""
    x = source[0]
    assert x is not None
    shape, _, _ = _shape(x, weight, stride, padding)
    n, c, h, w = x.shape
    sums = source[1] is not None
    need_dx = need_dx or sums

    def decode(outputs: list[bytes]) -> ConvGrad:
        dx = _from_bytes(outputs[0], x.dtype, (n, h, w, c)).permute(0, 3, 1, 2) if need_dx else None
        dweight = _from_bytes(outputs[1], torch.float32, weight.shape) if need_dw else None
        return ConvGrad(dx, dweight, _from_bytes(outputs[2], torch.float32, (-1, 2, c)) if sums else None)

    flags = [int(need_dx), int(need_dw), int(sums), plan, MISALIGNMENT[x.dtype] if misaligned else 0]
    tensors = [*incoming, *source, weight.flatten(), None if sums else residual_grad]
    numbers = [STORAGE[x.dtype], act, in_act, *flags]
    return Case("depthwise_backward", shape + numbers, tensors, misaligned, decode)


def _squeeze_excite_case(
    name: str,
    pooled: Tensor,
    tensors: list[Tensor | None],
    act: str,
    gate_act: str,
    decode: Callable[[list[bytes]], Any],
    misaligned: bool,
    more: tuple[int, ...] = (),
) -> Case:
    w1 = tensors[0]
    assert w1 is not None
    parts = 1 if pooled.dim() == 2 else pooled.shape[1]
    sizes = [pooled.shape[0], parts, pooled.shape[-1]]
    numbers = [*sizes, w1.shape[0], _activation(act), _activation(gate_act), *more, STORAGE[w1.dtype]]
    return Case(name, numbers, [pooled, *tensors], misaligned, decode)


def squeeze_excite(
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
    *,
    misaligned: bool = False,
) -> Case:
    """A case of ``reference.squeeze_excite``."""

    def decode(outputs: list[bytes]) -> Tensor:
        return _from_bytes(outputs[0], torch.float32, (pooled.shape[0], pooled.shape[-1]))

    tensors = [w1, b1, w2, b2]
    return _squeeze_excite_case("squeeze_excite", pooled, tensors, act, gate_act, decode, misaligned)


def squeeze_excite_backward(
    dgate: Tensor,
    pooled: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str = "silu",
    gate_act: str = "sigmoid",
    area: int = 1,
    *,
    misaligned: bool = False,
) -> Case:
    """A case of ``reference.squeeze_excite_backward``."""

    def decode(outputs: list[bytes]) -> SqueezeExciteGrad:
        shapes = (w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])
        dpooled = _from_bytes(outputs[0], torch.float32, pooled.shape)
        dw1, db1, dw2, db2 = (
            _from_bytes(data, w1.dtype, shape) for data, shape in zip(outputs[1:], shapes, strict=True)
        )
        return SqueezeExciteGrad(dpooled, dw1, None if b1 is None else db1, dw2, None if b2 is None else db2)

    tensors = [w1, b1, w2, b2, dgate]
    more = (dgate.shape[1] if dgate.dim() == 3 else 1, area)
    return _squeeze_excite_case(
        "squeeze_excite_backward", pooled, tensors, act, gate_act, decode, misaligned, more
    )


def case(problem: Any, **options: Any) -> Case:
    """The case of a ``problems.Problem``; options are ``plan`` and ``misaligned``."""
    return getattr(ByName(sys.modules[__name__]), problem.op)(*problem.args, **problem.kwargs, **options)


def count_plans(
    x: Tensor, weight: Tensor, stride: int, padding: Padding, *, backward: bool = False, has_z: bool = False
) -> Case:
    """How many candidates the planner has for a shape; each can be forced by its index."""
    shape, _, _ = _shape(x, weight, stride, padding)
    numbers = [STORAGE[x.dtype], int(backward), 1, 1, int(has_z)]
    return Case("count_plans", shape + numbers, [], False, lambda out: int.from_bytes(out[0], "little"))
