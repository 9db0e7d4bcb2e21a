"""How many operations our ops do, for :class:`torch.utils.flop_counter.FlopCounterMode`: those of the convolutions.

Counted as PyTorch counts its own, two for a multiplication and its addition: ``2 * positions * weights``, where a dense
convolution multiplies each output pixel with all of its weights. Once more for each gradient of a convolution.

Importing this module registers the formulas. Nothing else imports it, as PyTorch's counter brings 140 ms of imports.
Models are counted without it: the counter hooks every module, so that patched blocks run PyTorch's own.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

# They declare the ops.
from . import conv_bn_act, depthwise, mbconv_ops, pointwise, squeeze_excite  # noqa: F401

Shape = tuple[int, ...]
_ops = torch.ops.effnet_fast


def _pixels(shape: Shape) -> int:
    return shape[0] * shape[2] * shape[3]


def _mbconv(
    x: Shape,
    y: Shape,
    expand: Shape | None,
    stencil: Shape,
    project: Shape,
    w1: Shape | None,
    times: tuple[int, int, int, int],
) -> int:
    """``times``: how often expand, depthwise, project and squeeze-and-excite are multiplied."""
    works = (
        0 if expand is None else _pixels(x) * prod(expand),
        _pixels(y) * prod(stencil),
        _pixels(y) * prod(project),
        0 if w1 is None else x[0] * 2 * prod(w1),
    )
    return 2 * sum(count * work for count, work in zip(times, works, strict=True))


@register_flop_formula([_ops.mbconv_inference, _ops.mbconv_training])
def _mbconv_forward(x: Shape, *args: Any, out_shape: Any, **_: Any) -> int:
    y = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return _mbconv(x, y, args[0], args[5], args[10], args[15], (1, 1, 1, 1))


@register_flop_formula(_ops.mbconv_backward)
def _mbconv_backward(dy: Shape, x: Shape, *args: Any, **_: Any) -> int:
    expand, stencil, project, w1 = args[8], *args[9:12]
    need_x, need_expand, need_depthwise, need_project = args[19]
    again = any(args[24:25])
    # Gradients of what lies between are always needed.
    inner = 1 if expand is not None else int(need_x)
    times = (again + need_x + need_expand, inner + need_depthwise, 1 + need_project, 2)
    return _mbconv(x, dy, expand, stencil, project, w1, times)


@register_flop_formula(
    [_ops.conv_bn_act_inference, _ops.conv_bn_act_training, _ops.pointwise, _ops.depthwise]
)
def _conv_forward(x: Shape, weight: Shape, *args: Any, out_shape: Any, **_: Any) -> int:
    y = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return 2 * _pixels(y) * prod(weight)


@register_flop_formula(_ops.conv_bn_act_backward)
def _conv_bn_act_backward(
    dy: Shape, x: Shape, z: Shape, stats: Shape, weight: Shape, *args: Any, **_: Any
) -> int:
    recompute, need_dx, need_dw = args[4:7]
    return 2 * (recompute + need_dx + need_dw) * _pixels(dy) * prod(weight)


@register_flop_formula([_ops.pointwise_backward, _ops.depthwise_backward])
def _conv_backward(dz: Shape, x: Shape, weight: Shape, *args: Any, **_: Any) -> int:
    need_dx, need_dw = args[-2:]
    return 2 * (need_dx + need_dw) * _pixels(dz) * prod(weight)


@register_flop_formula(_ops.squeeze_excite)
def _squeeze_excite(pooled: Shape, w1: Shape, *args: Any, **_: Any) -> int:
    return 4 * pooled[0] * prod(w1)


@register_flop_formula(_ops.squeeze_excite_backward)
def _squeeze_excite_backward(dgate: Shape, pooled: Shape, w1: Shape, *args: Any, **_: Any) -> int:
    return 8 * pooled[0] * prod(w1)
