"""Jobs about the choice of backends on a GPU."""

from __future__ import annotations

import torch

from effnet_fast import dispatch
from effnet_fast.backend import cuda, native

from . import blocks, steering


def call_directly() -> list[int]:
    """A kernel of the CUDA C++ backend before anything else of the package has run."""
    x = torch.zeros(2, 8, 9, 9, device="cuda").to(memory_format=torch.channels_last)
    weight = torch.zeros(8, 1, 3, 3, device="cuda")
    steering.mark("direct")
    return list(cuda.depthwise(x, weight, 1, (1, 1, 1, 1)).y.shape)


def without_architecture() -> list[tuple[str, str]]:
    """A block on a GPU for which the CUDA library holds no code. Returns the refusals of the depthwise convolution."""
    call = blocks.call_of("inference", "fp32")
    real = native.status

    def other(product: str) -> native.Status:
        state = real(product)
        return state._replace(facts={**state.facts, "archs": ["100"]}) if product == "_cuda" else state

    native.status = other
    dispatch.forget_choices()
    try:
        steering.mark("fallback")
        call()
        steering.mark("")
        choice = dispatch.choose("depthwise", torch.device("cuda", 0), torch.float32)
    finally:
        native.status = real
        dispatch.forget_choices()
    return list(choice.passed_over)
