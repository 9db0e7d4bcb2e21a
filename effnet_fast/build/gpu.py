"""Whether CUDA kernels are wanted here, and for which architectures, without asking CUDA.

Without an NVIDIA driver nothing could run them, so they are compiled only where someone asks: in an image that is built on
a machine without a GPU, say. Where a GPU is, its own architecture is enough.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from . import toolchain
from .toolchain import MissingTool, Nvcc

DEFAULT_ARCHS = ("75", "80", "90", "100", "120")
ARCHS_VARIABLES = ("EFFNET_FAST_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST")
#: On: build CUDA kernels wherever this is. Off: nowhere.
CUDA_VARIABLE = "EFFNET_FAST_CUDA"
#: What an NVIDIA driver leaves: on Linux, in a container, in Windows' Linux.
DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")


def driver_present() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return any(os.path.exists(file) for file in DRIVER_FILES)


def refusal() -> MissingTool | None:
    """Why CUDA kernels are not wanted here; ``None``: they are."""
    if toolchain.is_set("EFFNET_FAST_SKIP_CUDA"):
        return MissingTool("EFFNET_FAST_SKIP_CUDA is set", "")
    chosen = os.environ.get(CUDA_VARIABLE, "").strip()
    if chosen and not toolchain.is_set(CUDA_VARIABLE):
        return MissingTool(f"{CUDA_VARIABLE}={chosen}", "")
    if chosen or any(os.environ.get(name, "").strip() for name in ARCHS_VARIABLES):
        return None
    if not driver_present():
        return MissingTool("no NVIDIA driver on this machine", "effnet-fast build --cuda")
    try:
        torch = toolchain.find_torch()
    except MissingTool:
        return None  # what is wrong with torch is said where it is needed
    if torch.cuda is None:
        return MissingTool(f"torch {torch.version} is built without CUDA", "")
    return None


def architectures(nvcc: Nvcc) -> tuple[str, ...]:
    """Architectures to compile for, as nvcc spells them ("90", "90a").

    What the user asked for, else those of this machine's GPUs, else (or for "all") :data:`DEFAULT_ARCHS`.
    ``EFFNET_FAST_CUDA_ARCHS`` or ``TORCH_CUDA_ARCH_LIST``: "80;90", "8.0 9.0a", "12.0+PTX", "all".

    Raises:
        MissingTool: nvcc does not know an architecture that was asked for.
    """
    listed = subprocess.run(
        [nvcc.path, "--list-gpu-arch"], capture_output=True, text=True, check=False
    ).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    default = tuple(arch for arch in DEFAULT_ARCHS if arch in known)
    for variable in ARCHS_VARIABLES:
        words = [word for word in re.split(r"[;,\s]+", os.environ.get(variable, "")) if word]
        if words == ["all"]:
            return default
        if words:
            return tuple(dict.fromkeys(_architecture(word, variable, nvcc, known) for word in words))
    here = capabilities()
    # A GPU newer than this nvcc runs the newest PTX, which comes with the default.
    return here if here and known.issuperset(here) else default


def _architecture(word: str, variable: str, nvcc: Nvcc, known: set[str]) -> str:
    match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)([af]?)(\+PTX)?", word)
    arch = match[1] + match[2] if match else ""
    if match is None or arch not in known:
        expected = " ".join(sorted(known, key=int))
        raise MissingTool(f"{variable}: nvcc {nvcc.version} has no architecture {word!r}", f"use: {expected}")
    return arch + match[3]


def capabilities() -> tuple[str, ...]:
    """Compute capabilities of this machine's GPUs ("90"), from nvidia-smi; empty where it is not to be had."""
    program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    if not Path(program).exists():
        return ()
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = {major + minor for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", text, re.MULTILINE)}
    return tuple(sorted(found, key=int))
