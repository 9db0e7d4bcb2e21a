"""Compile kernels for GPUs that are not there, from the very arguments a launch would pass.

Launchers run on meta tensors with the launch intercepted; the arguments are specialised the way Triton's runtime
does it. What the compiler made is judged from the PTX and from the resources of the machine code.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import driver

#: Shared memory a block may have, in bytes (CUDA C++ programming guide, technical specifications).
SHARED_LIMIT = {75: 64 << 10, 80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}

_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
_TENSOR_CORE = re.compile(r"\b(wgmma|tcgen05\.mma|mma\.sync)")
_WIDE = re.compile(r"\b(?:ld\.global\S*\.v(?:4\.b32|2\.b64)|cp\.async\.\S+ .*, 0x10,|cp\.async\.bulk)")


class Launch(NamedTuple):
    """An intercepted launch."""

    kernel: Any
    arguments: tuple[Any, ...]
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__).removesuffix("_kernel")


class Report(NamedTuple):
    """What became of a launch on one architecture."""

    shared: int  # bytes
    registers: int
    spills: int  # bytes of local memory per thread
    tensor_core: str  # the instruction's name, or ""
    wide_loads: int  # 16-byte global reads


def _source(launch: Launch) -> ASTSource:
    """The launch's kernel, specialised to its arguments the way Triton's runtime does it."""
    names = launch.kernel.arg_names
    given = dict(zip(names, launch.arguments, strict=False))
    given.update({key: value for key, value in launch.meta.items() if key in names})
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(names):
        value = given[name]
        if launch.kernel.params[index].is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def specialization(launch: Launch) -> Hashable:
    """Equal for launches that compile to the same code."""
    source = _source(launch)
    parts = (source.signature, source.constants, source.attrs, _options(launch))
    return launch.name, *(tuple((key, str(value)) for key, value in part.items()) for part in parts)


def _options(launch: Launch) -> dict[str, Any]:
    options = {key: launch.meta[key] for key in ("num_warps", "num_stages", "maxnreg") if key in launch.meta}
    return {**options, "enable_fp_fusion": True}


@contextmanager
def _active(target: GPUTarget) -> Iterator[None]:
    """Kernels that ask for the GPU's architecture while they are compiled hear of ``target``."""
    # reset_active() would look for a GPU.
    before = driver._active
    driver.set_active(SimpleNamespace(get_current_target=lambda: target))
    try:
        yield
    finally:
        driver.set_active(before)


def first_stage(launch: Launch, capability: int) -> str:
    """Triton's IR of a launch: what the front end makes of it, in milliseconds. Fails where compiling would."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = backend.parse_options(_options(launch))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    codegen = backend.get_codegen_implementation(options)
    with _active(target):
        return str(_source(launch).make_ir(target, options, codegen, backend.get_module_map(), context))


def compile_launch(launch: Launch, capability: int) -> Report:
    """Compile for an NVIDIA GPU of ``capability`` (90 is sm_90)."""
    target = GPUTarget("cuda", capability, 32)
    with _active(target):
        compiled = triton.compile(_source(launch), target=target, options=_options(launch))
    ptx = compiled.asm["ptx"]
    registers, spills = _resources(compiled.asm["cubin"])
    found = _TENSOR_CORE.search(ptx)
    return Report(
        compiled.metadata.shared, registers, spills, found[1] if found else "", len(_WIDE.findall(ptx))
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory (spills, stack) per thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), max(int(usage["STACK"]), int(usage["LOCAL"]))
