"""Jobs on one MBConv block: everything a user may do with it, small enough to do in every way."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import effnet_fast

from . import baseline, steering
from .networks import DTYPES

DEVICE = torch.device("cuda", 0)


def block(device: torch.device = DEVICE, expand_ratio: int = 6) -> nn.Module:
    """A patched block with everything inside: expansion, squeeze-and-excite, residual, drop path."""
    baseline.install()
    made = effnet_fast.nn.MBConv(
        80,
        80,
        expand_ratio=expand_ratio,
        kernel_size=3,
        stride=1,
        squeeze_channels=20,
        stochastic_depth_prob=0.1,
    )
    return effnet_fast.patch(made.to(device))


def image(device: torch.device = DEVICE, batch: int = 4, size: int = 14) -> Tensor:
    return torch.zeros(batch, 80, size, size, device=device).to(memory_format=torch.channels_last)


def call_of(
    mode: str, dtype: str, device: torch.device = DEVICE, batch: int = 4, size: int = 14
) -> Callable[[], Any]:
    """A call of a block: ``mode`` "inference" or "training", ``dtype`` fp32, fp16, bf16 or autocast."""
    model, x = block(device).train(mode == "training"), image(device, batch, size)
    model.to(DTYPES.get(dtype, torch.float32))
    x = x.to(DTYPES.get(dtype, torch.float32))
    return caller(model, x, mode, dtype)


def caller(model: nn.Module, x: Tensor, mode: str, dtype: str) -> Callable[[], Any]:
    def infer() -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=dtype == "autocast"):
            return model(x)  # type: ignore[no-any-return]

    def train() -> None:
        model.zero_grad(set_to_none=True)
        given = x.detach().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "autocast"):
            y = model(given)
        y.backward(torch.empty_like(y))
        assert given.grad is not None and all(p.grad is not None for p in model.parameters())

    return train if mode == "training" else infer


def warm(call: Callable[[], Any]) -> Callable[[], Any]:
    """After two calls everything that is prepared or recorded is: the next one repeats it."""
    call()
    call()
    return call


def steady(mode: str, dtype: str) -> None:
    """A call like those before it."""
    call = warm(call_of(mode, dtype))
    steering.mark("steady")
    call()
    steering.mark("")


def versions() -> dict[str, set[str]]:
    """The buffers that autograd saw change in a step like those before it, of a block and of a ``nn.BatchNorm2d``."""
    x, seen = image(), {}
    for name, model in ("block", block()), ("BatchNorm", nn.BatchNorm2d(80).to(DEVICE)):
        call = caller(model.train(), x, "training", "fp32")
        call()
        call()
        before = {key: t._version for key, t in model.named_buffers()}
        call()
        seen[name] = {key.split(".")[-1] for key, t in model.named_buffers() if t._version != before[key]}
    return seen


def on_side_stream(mode: str) -> int:
    """On a stream of the user's."""
    call = warm(call_of(mode, "autocast"))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    steering.mark("side")
    with torch.cuda.stream(stream):
        call()
    steering.mark("")
    return torch.cuda.current_device()


def on_other_gpu(mode: str) -> int:
    """On cuda:1, while cuda:0 is current; returns the GPU that is current afterwards."""
    steering.mark("other")
    warm(call_of(mode, "autocast", torch.device("cuda", 1)))()
    steering.mark("")
    return torch.cuda.current_device()


def in_thread(mode: str) -> None:
    """In a thread of its own that has never touched CUDA, on a stream of its own."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
                call = call_of(mode, "autocast")
                steering.mark("thread")
                warm(call)()
                steering.mark("")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def memory(mode: str) -> dict[str, int]:
    """Bytes that are still allocated after a call, and after the block itself is gone."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    call = call_of(mode, "bf16")
    call()
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        call()
    repeated = torch.cuda.memory_allocated()
    del call
    gc.collect()
    after = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    return {"held": held - before, "repeated": repeated - before, "after": after - before}


def captured(mode: str, warm: bool) -> None:
    """A call recorded as a graph and replayed; ``warm``: the same shapes have run before."""
    # Sizes that no other job uses, so that nothing has been loaded for them.
    size = 22 if warm else 26
    batch = 2 if mode == "inference" else 3
    call = call_of(mode, "bf16", batch=batch, size=size)
    if warm:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    steering.mark("capture")
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        # A capture that failed leaves its stream current.
        torch.cuda.set_stream(torch.cuda.default_stream())
    steering.mark("replay")
    graph.replay()
    steering.mark("")


def compiled(mode: str, options: str) -> str:
    """``torch.compile(fullgraph=True)``; ``options`` is its mode. Returns what dynamo counted as graph breaks."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, x = block().train(mode == "training"), image()
    call = caller(torch.compile(model, fullgraph=True, mode=options), x, mode, "autocast")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        call()
    steering.mark("steady")
    torch.compiler.cudagraph_mark_step_begin()
    call()
    steering.mark("")
    return str(dict(torch._dynamo.utils.counters["graph_break"]))
