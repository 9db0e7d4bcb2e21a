"""Jobs on whole networks: what they launch, and the host's time for it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import effnet_fast

from . import baseline, steering

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def network(name: str, kind: str) -> nn.Module:
    """A network on the GPU.

    Args:
        name: "b0" to "b7".
        kind: "torchvision" or "timm" as they are, "patched torchvision", "patched timm", or "effnet_fast", the drop-in.
    """
    baseline.install()
    if kind == "effnet_fast":
        return getattr(effnet_fast, name)().cuda()  # type: ignore[no-any-return]
    library = kind.split(" ")[-1]
    if library == "torchvision":
        import torchvision

        model = getattr(torchvision.models, f"efficientnet_{name}")()
    else:
        import timm

        model = timm.create_model(f"efficientnet_{name}")
    model = model.cuda()
    return effnet_fast.patch(model) if kind.startswith("patched") else model


def made(
    mode: str, name: str, kind: str, dtype: str, batch: int, size: int
) -> tuple[Callable[[], Any], nn.Module]:
    """A call of a network, and the network.

    Args:
        mode: "inference", a forward in inference mode; or "training", forward and backward, from gradients of None.
        dtype: "autocast" (to bf16) or what the model is converted to, BatchNorm too: "fp32", "fp16", "bf16".
    """
    model = network(name, kind).train(mode == "training")
    to = DTYPES.get(dtype, torch.float32)
    model.to(to)
    x = torch.zeros(batch, 3, size, size, dtype=to, device="cuda")

    def infer() -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=dtype == "autocast"):
            return model(x)  # type: ignore[no-any-return]

    def train() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "autocast"):
            loss = model(x).float().sum()
        loss.backward()

    return (train if mode == "training" else infer), model


def steady(
    mode: str, name: str, kind: str, dtype: str, batch: int = 2, size: int = 224
) -> list[tuple[str, str, str]]:
    """A call like the one before it, marked "steady". Returns the report: layer, "fused" or "eager", reason."""
    call, model = made(mode, name, kind, dtype, batch, size)
    # The second call records, the next one repeats.
    call()
    call()
    steering.mark("steady")
    call()
    steering.mark("")
    return [(row.name, row.state, row.reason) for row in effnet_fast.report(model).rows]


def measure(
    cases: list[tuple[str, str, str, str, int, int]], rounds: int = 7, repeats: int = 3
) -> list[dict[str, Any]]:
    """Marks the launches of each (mode, name, kind, dtype, batch, size) by its number, and takes the host's time in turns.

    Returns a dict for each case: seconds of the first call (compiling or reading the cache), and the median, least and
    most host milliseconds of a call over the rounds: CPU time of the whole process, autograd's thread included.
    """
    calls, results = [], []
    for number, case in enumerate(cases):
        call, _ = made(*case)
        began = time.process_time()
        call()
        results.append({"first_s": time.process_time() - began, "ms": []})
        call()
        steering.mark(str(number))
        call()
        steering.mark("")
        calls.append(call)
    with steering.quiet():
        for _ in range(rounds):
            for call, result in zip(calls, results, strict=True):
                began = time.process_time()
                for _ in range(repeats):
                    call()
                result["ms"].append((time.process_time() - began) / repeats * 1e3)
    for result in results:
        ms = result.pop("ms")
        result.update(median_ms=statistics.median(ms), least_ms=min(ms), most_ms=max(ms))
    return results
