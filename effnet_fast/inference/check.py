"""Does an optimized model compute what its model computes? Asked once, before anybody relies on it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import tolerance
from ..errors import EffnetFastError
from ..patching import unpatch
from ..system import advice

#: fp32 against fp32. PyTorch's own error was 12 to 19 roundings of the largest logit on B0 to B7 (against fp64);
#: a wrong layer, weight or epsilon shows in the third digit.
FP32_ROUNDINGS = 512.0

#: With few outputs the largest error of PyTorch says little: six deviations are what twice the largest of 1000 is.
DEVIATIONS = 6.0

#: Small random images beside the example, so that a network with one output gives numbers enough to compare.
SMALL = (8, 64)


class Expectation(NamedTuple):
    """What was computed by the model, and by PyTorch in the precision to be used."""

    images: list[Tensor]
    truth: list[Tensor]  # one per tensor of images and outputs, fp32
    limit: float


def expect(model: nn.Module, example: Tensor, dtype: torch.dtype, small: bool) -> Expectation:
    """Run the model, in evaluation mode, on the example's first and last image.

    In bf16 the truth is the model in fp32, whose error is 2^-16 of bf16's, and the rule is that of
    :mod:`effnet_fast.tolerance`: at most twice the error of PyTorch's bf16. fp32 has no affordable truth (PyTorch's
    fp64 convolutions need minutes): a fixed number of roundings is allowed, and four times what a change of the
    images by one rounding does to the outputs, which on B7 was as much as PyTorch's own error.

    Args:
        model: it is not changed; a copy of it runs where dtypes have to be.
        example: [N, C, H, W].
        dtype: the precision to be used, float32 or bfloat16.
        small: add small random images.
    """
    ends = example[:1] if len(example) == 1 else torch.stack([example[0], example[-1]])
    images = list(ends.split(1))
    if small:
        generator = torch.Generator("cpu").manual_seed(len(images))
        count, side = SMALL
        height, width = (min(size, side) for size in example.shape[2:])
        shape = (count, example.shape[1], height, width)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        images.append((noise * ends.float().std(correction=0) + ends.float().mean()).to(example.dtype))
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        plain = model
        if dtype != torch.float32 or any(p.dtype != torch.float32 for p in model.parameters()):
            plain = unpatch(copy.deepcopy(model)).float()
        truth = _run(plain, images, torch.float32)
        largest = max((t.abs().max().item() for t in truth if t.numel()), default=0.0)
        limit = FP32_ROUNDINGS * tolerance.UNIT_ROUNDOFF[torch.float32] * largest
        # What moving every pixel by a rounding does: as much as roundings inside, also in a badly conditioned network.
        moved = [x.float() * (1 + 2.0**-23) for x in images]
        limit += 2.0 * _allowed(_run(plain, moved, torch.float32), truth, torch.float32)
        if dtype != torch.float32:
            limit += _allowed(_run(cast(plain, dtype), images, dtype), truth, dtype)
    if not (math.isfinite(largest) and math.isfinite(limit)):
        raise EffnetFastError(
            f"optimize: the model's own outputs are not finite in {dtype}, so that nothing can be compared"
        )
    if not any(t.numel() for t in truth):
        advice.warn(
            "optimize: the model returned no number for the example, so that no value was compared; an example on which "
            "it finds something would be better"
        )
    return Expectation(images, truth, limit)


def verify(expected: Expectation, run: Callable[[Tensor], Any]) -> None:
    """Compare.

    Raises:
        EffnetFastError: other shapes, values that are not finite, or a larger deviation than allowed.
    """
    got = _run(run, expected.images, None)
    shapes, wanted = ([tuple(t.shape) for t in ts] for ts in (got, expected.truth))
    if shapes != wanted:
        raise EffnetFastError(f"optimize: outputs of shapes {shapes}, expected the model's, {wanted}")
    worst = max(tolerance.error(g, t) for g, t in zip(got, expected.truth, strict=True))
    if not worst <= expected.limit:
        raise EffnetFastError(
            f"optimize: an output differs from the model's by {worst:.2e}, expected at most {expected.limit:.2e}; "
            "the optimized model is not used"
        )


def _run(model: Callable[[Tensor], Any], images: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    return [t.float() for x in images for t in tensors(model(x if dtype is None else x.to(dtype)))]


def _allowed(baseline: list[Tensor], truth: list[Tensor], dtype: torch.dtype) -> float:
    if [t.shape for t in baseline] != [t.shape for t in truth]:
        raise EffnetFastError(
            f"optimize: roundings in {dtype} change the shapes of the model's outputs, so that nothing can be compared"
        )
    flat = [torch.cat([t.flatten() for t in ts]) for ts in (baseline, truth)]
    if not flat[0].numel():
        return 0.0
    deviation = (flat[0] - flat[1]).double().square().mean().sqrt().item()
    more = DEVIATIONS * deviation - 2.0 * tolerance.error(*flat)
    return tolerance.allowed(flat[0], flat[1], dtype) + max(0.0, more)


def tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of a model's output: one, or a (nested) list, tuple or dict, perhaps with numbers and names beside them.

    Raises:
        EffnetFastError: an output of another kind.
    """
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple, dict)):
        for item in output.values() if isinstance(output, dict) else output:
            yield from tensors(item)
    elif not isinstance(output, (type(None), bool, int, float, str)):
        raise EffnetFastError(f"optimize: the model returns a {type(output).__name__}, expected tensors")


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Everything but BatchNorm in ``dtype``, in place, as mixed-precision practice has it."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.to(torch.promote_types(dtype, torch.float32))
    return model
