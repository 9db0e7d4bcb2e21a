"""Whether somebody records or transforms the program, in a form in which our ops are unknown or opaque."""

from __future__ import annotations

import sys

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack, _len_torch_function_stack
from torch.utils._device import DeviceContext

from ..ops.declare import constant_result

_TENSORS = (Tensor, nn.Parameter)


# torch 2.11's compiler takes the question for true wherever it traces it, so it is not to be traced.
@constant_result
def _exporting() -> bool:
    return torch.compiler.is_exporting()


def recorded(x: object) -> bool:
    """Whether operations are written down (``torch.fx``, ``torch.export``, ONNX, TorchScript) or transformed.

    ``torch.func`` and forward-mode derivatives transform every operation and ask each for rules that ours lack.
    """
    if torch.compiler.is_compiling():
        return _exporting()
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or isinstance(x, torch.fx.Proxy)
    )


def observed(x: object) -> bool:
    """Whether a block has to run its own modules because of who is looking at what they call.

    Besides :func:`recorded`: torch-function modes (quantization tools, profilers) see PyTorch's functions as they are
    called, and so do inputs of another class than ``torch.Tensor``.
    """
    if recorded(x):
        return True
    if torch.compiler.is_compiling():
        return False
    return type(x) not in _TENSORS or (_len_torch_function_stack() > 0 and _function_mode())


def _function_mode() -> bool:
    """``torch.set_default_device`` is such a mode too, and concerns only tensors that name no device."""
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def saved_by_others() -> bool:
    """Whether tensors kept for the backward go through somebody's hooks, and those of gradient checkpointing above all."""
    return recomputed() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def recomputed() -> bool:
    """Whether gradient checkpointing runs this forward a second time, inside a backward.

    Other forwards inside a backward (in hooks, in the backward of a function of the user's) are forwards like any.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return False
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if module == "torch.utils.checkpoint" and frame.f_code.co_name in ("backward", "unpack_hook"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
