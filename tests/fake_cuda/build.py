"""Builds the fake device: ``device/*.cpp``, and a stub for every other CUDA call that this torch is linked to."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

_FOUND = importlib.util.find_spec("triton")
_TRITON = Path(_FOUND.origin or "").parent / "backends" / "nvidia" if _FOUND else None
_LIBRARIES = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so")
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")


def missing() -> str:
    """What the fake device cannot be built or run without and is not here; "" if all is."""
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if torch.version.cuda is None:
        return "needs a torch that is built with CUDA"
    if _TRITON is None:
        return "needs triton"
    return "" if _headers() else "needs CUDA's headers"


def build() -> Path:
    """The preloadable library, kept in build/fake_cuda until its sources or torch change. Takes seconds."""
    sources = sorted(HERE.glob("device/*.cpp"))
    digest = hashlib.sha256(f"{torch.__version__} {_FLAGS}".encode())
    for path in (*sources, HERE / "device" / "fake.h", Path(__file__)):
        digest.update(path.read_bytes())
    # Loaders ask for libcuda.so.1 by name, hence a folder for each build.
    target = ROOT / "build" / "fake_cuda" / digest.hexdigest()[:16] / "libcuda.so.1"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    stubs = target.parent / "stubs.cpp"
    stubs.write_text(_stubs(sources))
    partial = target.with_suffix(".partial")
    headers = [f"-isystem{folder}" for folder in _headers()]
    command = ["g++", *_FLAGS, *headers, *map(str, sources), str(stubs), "-ldl"]
    subprocess.run([*command, "-Wl,-soname,libcuda.so.1", "-o", str(partial)], check=True)
    partial.rename(target)
    return target


def _headers() -> list[Path]:
    """Folders of CUDA's headers, none if there are none: torch's version first, because structures differ by version."""
    places = [Path(folder) / "nvidia" / "cu13" / "include" for folder in sys.path]
    places.append(Path("/usr/local/cuda/include"))
    found = [place for place in places if (place / "cuda_runtime_api.h").exists()][:1]
    # torch's wheels may come without the crt folder, which only names the compiler's attributes.
    return [*found, _TRITON / "include"] if found and _TRITON else []


def _stubs(sources: list[Path]) -> str:
    text = "".join(path.read_text() for path in sources)
    have = set(re.findall(r"^FAKE_API [\w ]+?[\s*]+(\w+)\(", text, re.MULTILINE))
    # Triton compiles its driver on first use; what its headers call cuX may be cuX_v2 to the linker.
    calls = re.findall(r"\bcu[A-Z][a-z]\w*", ((_TRITON or Path()) / "driver.c").read_text())
    wanted = [name + version for name in calls for version in ("", "_v2")]
    for name in _LIBRARIES:
        library = Path(torch.__file__).parent / "lib" / name
        symbols = subprocess.run(
            ["nm", "-D", "--undefined-only", str(library)], check=True, capture_output=True, text=True
        ).stdout
        wanted += re.findall(r" U ((?:__)?cuda[A-Z]\w*)@libcudart", symbols)
        wanted += re.findall(r" U (cu(?!File)[A-Z]\w*)$", symbols, re.MULTILINE)
    lines = ['#include "' + str(HERE / "device" / "fake.h") + '"', "FAKE_API int fake_missing(const char*);"]
    lines += [
        f'extern "C" __attribute__((visibility("default"))) int stub_{name}() __asm__("{name}");\n'
        f'int stub_{name}() {{ return fake_missing("{name}"); }}'
        for name in dict.fromkeys(wanted)
        if name not in have
    ]
    return "\n".join(lines) + "\n"
