"""``effnet_fast.optimize``: a model for inference on the CPU, with everything prepared once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import EffnetFastError, UnsupportedBlockError
from ..patching import libraries, patch, report
from ..patching.registry import candidates
from ..system import advice
from . import check
from .extract import DTYPES, check_model, extract, is_known
from .folded import Folded
from .module import Inference, OptimizedModel, PatchedCopy, check_input, facts_of

Example = Tensor | Sequence[int]


def optimize(model: nn.Module, example: Example, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Make a network ready for inference on the CPU.

    BatchNorm is folded into the convolutions (in fp64), weights are packed once, and the whole network, from stem
    to classifier, runs as one native call; of a classifier of another kind than dropout and one linear layer, the
    layers from the second on run as they are, in PyTorch. The model is not changed and not kept.

    A network of another kind with MBConv blocks inside gets what is possible without knowing it: a copy whose
    blocks are patched.

    Args:
        model: in evaluation mode, on the CPU, fp32 or bf16: an EfficientNet, MobileNetV2 or V3 or MNASNet of
            effnet_fast, torchvision, timm, efficientnet_pytorch or efficientnet_lite_pytorch, patched or not, or any
            network holding blocks that :func:`effnet_fast.patch` knows. (On CUDA use ``patch``.)
        example: a batch like those to come, [N, C, H, W], or its shape. It is run, to plan and to compare with the
            model; other sizes work afterwards too.
        dtype: to compute in, ``torch.float32`` or ``torch.bfloat16``; ``None``: the example's, or the model's where
            only a shape is given.

    Returns:
        A module from images [N, C, H, W] in fp32 or bf16, of any memory format, to what the model returns; bf16
        where the images are bf16, else fp32. Images may be given by the name that the model has for them
        (``pixel_values=x``), and attributes of libraries' models are there too (``config``, ``num_features``, ...). It may be called from several threads at once, follows
        ``torch.set_num_threads``, and refuses images that require a gradient.

    Warns:
        UserWarning: once per process, the CPU kernels are not built: PyTorch's convolutions run.

    Raises:
        UnsupportedBlockError: something in the model that the program cannot represent (a hook, training mode, an
            unknown block); the message names the module.
        EffnetFastError: arguments out of range; outputs that differ from the model's by more than rounding.
    """
    if not isinstance(model, nn.Module):
        raise EffnetFastError(f"optimize: model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, Inference):
        raise EffnetFastError("optimize: the model is optimized already")
    if dtype is not None and dtype not in DTYPES:
        raise EffnetFastError(f"optimize: dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
    images = _images(model, example)
    dtype = dtype or images.dtype
    try:
        check_model(model)
        known = is_known(model)
        found = extract(model) if known else None
    except UnsupportedBlockError as error:
        raise UnsupportedBlockError(f"optimize: {error}") from None
    channels = None if found is None else found.network.stem.weight.shape[1]
    check_input(images, channels)
    advice.mention_missing_kernels(gpu=False)
    expected = check.expect(model, images, dtype, small=known)
    optimized: Inference
    if found is None:
        optimized = _patched_copy(model, dtype)
    else:
        network, keep_dims, tail = found
        tail = copy.deepcopy(tail)
        folded = Folded(network, dtype, keep_dims, type(model).__name__, tail, facts_of(model))
        optimized = OptimizedModel(folded)
    check.verify(expected, optimized)
    with torch.no_grad():
        optimized(images)
    return optimized


def _images(model: nn.Module, example: Example) -> Tensor:
    if isinstance(example, Tensor):
        check_input(example, None)
        if not len(example):
            raise EffnetFastError("optimize: example: expected an image, got an empty batch")
        return example.detach()
    ok = isinstance(example, (tuple, list, torch.Size)) and len(example) == 4
    if not ok or any(not isinstance(size, int) or size < 1 for size in example):
        raise EffnetFastError(
            f"optimize: example: expected a tensor or a shape (N, C, H, W), got {example!r}"
        )
    dtype = next((p.dtype for p in model.parameters() if p.dtype in DTYPES), torch.float32)
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(tuple(example), generator=generator, dtype=torch.float32, device="cpu").to(dtype)


def _patched_copy(model: nn.Module, dtype: torch.dtype) -> PatchedCopy:
    twin = check.cast(copy.deepcopy(model), dtype)
    if candidates(twin):
        patch(twin)
    rows = report(twin).rows
    fused = sum(row.state == "fused" for row in rows)
    if not fused:
        why = f"; {rows[0].name}: {rows[0].reason}" if rows else ""
        raise UnsupportedBlockError(
            f"optimize: {type(model).__name__} is not a network of {libraries.NAMES} that is known whole, and "
            f"{'none of its blocks runs fused' if rows else 'holds no MBConv block that is known'}{why}"
        )
    return PatchedCopy(twin.to(memory_format=torch.channels_last), dtype, fused)
