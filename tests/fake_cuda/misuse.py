"""Jobs that do what a GPU's driver refuses: the fake device must find them out."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

from . import steering


def synchronize_in_capture() -> None:
    x = torch.zeros(4, device="cuda")
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            x.add_(1)
            torch.cuda.synchronize()
    finally:
        torch.cuda.set_stream(torch.cuda.default_stream())


def zeros_and_a_copy() -> tuple[int, list[int]]:
    """Kilobytes that four gigabytes of zeros and a copy of them take here, and what is then read of ones among them."""
    before = _resident_kilobytes()
    x = torch.zeros(4 << 30, dtype=torch.int8, device="cuda")
    x[12345:12348].copy_(torch.ones(3, dtype=torch.int8))
    copied = torch.empty_like(x).copy_(x)
    taken = _resident_kilobytes() - before
    values = copied[12344:12349].tolist()
    driver = ctypes.CDLL(os.environ["FAKE_CUDA_LIBRARY"])
    driver.cudaMemset(ctypes.c_void_p(x.data_ptr() + 1), 0, ctypes.c_size_t(x.numel() - 1))
    return taken, values + x[12344:12349].tolist()


def _resident_kilobytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def launch_on_another_gpus_stream() -> None:
    with torch.cuda.device(1):
        stream = torch.cuda.Stream()
    steering.launch(b"lost", stream.cuda_stream)


def triton_on_the_wrong_gpu() -> None:
    """A tensor of cuda:1, launched while cuda:0 is current."""
    _store_kernel()[(1,)](torch.zeros(16, device="cuda:1"))


def much_shared_memory(asked_for: int) -> None:
    """A launch with 64 KB of shared memory by a kernel for which ``asked_for`` bytes were asked for, if any."""
    kernel = _store_kernel().warmup(torch.zeros(16, device="cuda"), grid=(1,))
    _ = kernel.run  # asking for it loads the kernel
    driver, function = ctypes.CDLL(os.environ["FAKE_CUDA_LIBRARY"]), ctypes.c_void_p(kernel.function)
    if asked_for:
        # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.cuFuncSetAttribute(function, 8, asked_for)
    driver.cuLaunchKernel(function, *(1, 1, 1), *(32, 1, 1), 64 << 10, None, None, None)


def _store_kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def store_kernel(x):  # type: ignore[no-untyped-def]
        tl.store(x, 1.0)

    return store_kernel


def wait_for_the_device() -> None:
    x = torch.zeros(4, device="cuda")
    steering.mark("item")
    x.sum().item()
    steering.mark("")


def leave_memory() -> int:
    before = steering.allocated()
    kept = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    more = steering.allocated() - before
    del kept
    return more
