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


def inference(name: str, kind: str, dtype: str, batch: int, size: int) -> Callable[[], Any]:
    """A forward in inference mode. ``dtype`` may be "autocast"; others convert the model, BatchNorm too."""
    model = network(name, kind).eval()
    to = DTYPES.get(dtype, torch.float32)
    model.to(to)
    x = torch.zeros(batch, 3, size, size, dtype=to, device="cuda")

    def forward() -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=dtype == "autocast"):
            return model(x)  # type: ignore[no-any-return]

    return forward


def training(name: str, kind: str, dtype: str, batch: int, size: int) -> Callable[[], Any]:
    """Forward, loss and backward of a training step; gradients start from None, there is no optimizer."""
    model = network(name, kind).train()
    to = DTYPES.get(dtype, torch.float32)
    model.to(to)
    x = torch.zeros(batch, 3, size, size, dtype=to, device="cuda")

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "autocast"):
            loss = model(x).float().sum()
        loss.backward()

    return step


MODES = {"inference": inference, "training": training}


def measure(
    cases: list[tuple[str, str, str, str, int, int]], rounds: int = 7, repeats: int = 3
) -> list[dict[str, Any]]:
    """Marks the launches of each (mode, name, kind, dtype, batch, size) by its number, and takes the host's time in turns.

    Returns a dict for each case: seconds of the first call (compiling or reading the cache), and the median, least and
    most host milliseconds of a call over the rounds: CPU time of the whole process, autograd's thread included.
    """
    calls, results = [], []
    for number, (mode, *rest) in enumerate(cases):
        call = MODES[mode](*rest)  # type: ignore[arg-type]
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
