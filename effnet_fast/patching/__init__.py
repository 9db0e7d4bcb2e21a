"""Patching models that exist: :func:`patch`, :func:`unpatch`, :func:`report`, :func:`register_block`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ..errors import EffnetFastError, ShardedWeightError, UnsupportedBlockError
from ..nn import tensors
from ..nn.fingerprint import ATTRIBUTE
from ..nn.fused import compute_dtype
from ..system import advice
from . import libraries, table
from .registry import (
    RECOMPUTES,
    candidates,
    fused_class,
    is_patched,
    original_class,
    read_parts,
    register_block,
    runner,
    unpatched_class,
)

__all__ = ["Report", "ReportRow", "patch", "register_block", "report", "unpatch"]

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model,
    *,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    strict: bool = False,
    recompute_expand: bool | None = None,
) -> Model:
    """Let every MBConv block of ``model`` run on fused kernels, in place; and stem and head beside the blocks.

    Parameters, buffers, state_dict keys, hooks and ``isinstance`` stay as they are. Fused blocks return channels_last
    memory: flatten features with ``flatten(1)`` or ``reshape``, not with ``view``. A patched block decides at
    every call: where something inside it is not what the kernels compute (a hook, a parametrization, another
    normalization, an unknown activation) or no fast backend runs here, it runs its own code; :func:`report` says why.

    Args:
        model: any module holding blocks of torchvision, timm, efficientnet_pytorch, efficientnet_lite_pytorch, geffnet,
            transformers, segmentation_models_pytorch, this package, or a class given to :func:`register_block`.
        filter_fn: ``filter_fn(block, name) -> bool``; only blocks it accepts are patched.
        strict: raise if a block found cannot run fused, or if none is found.
        recompute_expand: train in less memory: the backward convolves again where a convolution widens its input
            (the expansions, the stem, the head), so that their outputs need not be kept. Same values, one more
            1x1 convolution a block. ``None`` leaves patched blocks as they are and others without.

    Returns:
        ``model`` itself.

    Warns:
        UserWarning: nothing was found to patch; or, once per process, this machine's kernels are not built.

    Raises:
        EffnetFastError: ``model`` is not a module; with ``strict``, the blocks that cannot run fused and why.
            The model is left as it was.
    """
    if not isinstance(model, nn.Module):
        raise EffnetFastError(f"patch: model: expected a torch.nn.Module, got {type(model).__name__}")
    if recompute_expand not in (None, False, True):
        raise EffnetFastError(
            f"patch: recompute_expand: expected True, False or None, got {recompute_expand!r}"
        )
    found = [
        (name, block) for name, block in candidates(model) if filter_fn is None or filter_fn(block, name)
    ]
    if strict:
        _refuse_unsupported(model, found)
    if any(parameter.device.type != "meta" for _, block in found for parameter in block.parameters()):
        advice.mention_missing_kernels()
    if not found:
        _warn_of_nothing(model, filter_fn is not None)
    for _, block in found:
        if not is_patched(block):
            block.__class__ = fused_class(type(block))
        if recompute_expand:
            setattr(block, RECOMPUTES, True)
        elif recompute_expand is not None:
            block.__dict__.pop(RECOMPUTES, None)
    return model


def _programs(model: nn.Module) -> list[tuple[str, Any]]:
    """(name, module) of the networks in a model that :func:`effnet_fast.optimize` made whole programs of."""
    # By a mark on the class, because optimize is made with what is patched here.
    return [
        (name, module) for name, module in model.named_modules() if hasattr(type(module), "whole_program")
    ]


def _warn_of_nothing(model: nn.Module, filtered: bool) -> None:
    if _programs(model):
        advice.warn("patch: the model is optimized already, which is more than patched, and stays as it is")
        return
    if filtered and candidates(model):
        advice.warn("patch: filter_fn accepted none of the blocks, and the model stays as it is")
        return
    advice.warn(
        f"patch: no MBConv block of {libraries.NAMES} found in {type(model).__name__}, which stays as it is; "
        "effnet_fast.register_block teaches other classes"
    )


def _refuse_unsupported(model: nn.Module, found: list[tuple[str, nn.Module]]) -> None:
    if not found:
        raise EffnetFastError(f"patch: no MBConv block found in {type(model).__name__}")
    rows = [row for row in (_row(name, block) for name, block in found) if row.state == "eager"]
    if rows:
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise EffnetFastError(
            f"patch: {rows[0].name or 'the model'} cannot run fused: {rows[0].reason}{more}"
        )


def unpatch(model: Model) -> Model:
    """Undo :func:`patch`, in place; returns ``model``. Blocks that are not patched stay as they are."""
    for block in model.modules():
        if is_patched(block):
            block.__class__ = unpatched_class(block)
            block.__dict__.pop(RECOMPUTES, None)
            block.__dict__.pop(ATTRIBUTE, None)
    return model


class ReportRow(NamedTuple):
    """One block: its name in the model, its class, "fused" or "eager", the backends, and why if eager.

    Blocks sharded by FSDP are "sharded" outside their forward: they decide there, where their weights are whole.
    """

    name: str
    kind: str
    state: str
    backend: str
    reason: str


class Report(NamedTuple):
    """What :func:`report` found; printing it, or showing it in a notebook, gives a table."""

    rows: list[ReportRow]

    @property
    def fused(self) -> int:
        return sum(row.state == "fused" for row in self.rows)

    def as_dicts(self) -> list[dict[str, str]]:
        return [row._asdict() for row in self.rows]

    @property
    def summary(self) -> str:
        return f"{self.fused} of {len(self.rows)} blocks fused"

    def __str__(self) -> str:
        return table.as_text(self.rows, self.summary)

    def _repr_html_(self) -> str:
        return table.as_html(self.rows, self.summary)


def report(model: nn.Module) -> Report:
    """For every MBConv block, and stem and head beside them: fused or eager now, on which backend, and why not.

    A network that :func:`effnet_fast.optimize` made is one block: it runs as a whole.

    "Now" is the device and dtype the block is in, and its mode: in training mode the training kernels are asked
    for, in eval mode the inference kernels, which run under ``torch.no_grad`` or ``torch.inference_mode``.

    Raises:
        EffnetFastError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise EffnetFastError(f"report: model: expected a torch.nn.Module, got {type(model).__name__}")
    rows = [_row(name, block, must_be_patched=True) for name, block in candidates(model)]
    for name, program in _programs(model):
        rows.append(ReportRow(name, type(program).__name__, "fused", program.backend, ""))
    return Report(rows)


def _row(name: str, block: nn.Module, must_be_patched: bool = False) -> ReportRow:
    kind = original_class(block).__name__
    if must_be_patched and not is_patched(block):
        return ReportRow(name, kind, "eager", "", "not patched")
    try:
        parts = read_parts(block)
        tensors.of(parts)
        weight, run = parts.weight, runner(parts)
        with torch.set_grad_enabled(block.training):
            training = run.needs_backward(parts, weight)
        names = run.plan(parts, weight.device, compute_dtype(weight), training)
        return ReportRow(name, kind, "fused", names, "")
    except ShardedWeightError as error:
        return ReportRow(name, kind, "sharded", "", str(error))
    except UnsupportedBlockError as error:
        return ReportRow(name, kind, "eager", "", str(error))
