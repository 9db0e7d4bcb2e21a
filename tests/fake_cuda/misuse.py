"""Jobs that do what a GPU's driver refuses: the fake device must find them out."""

from __future__ import annotations

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


def launch_on_another_gpus_stream() -> None:
    with torch.cuda.device(1):
        stream = torch.cuda.Stream()
    steering.launch(b"lost", stream.cuda_stream)


def triton_on_the_wrong_gpu() -> None:
    """A tensor of cuda:1, launched while cuda:0 is current."""
    import triton
    import triton.language as tl

    @triton.jit
    def store_kernel(x):  # type: ignore[no-untyped-def]
        tl.store(x, 1.0)

    store_kernel[(1,)](torch.zeros(16, device="cuda:1"))


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
