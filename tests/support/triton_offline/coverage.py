"""Launches that between them use every Triton kernel with its heaviest prologues and epilogues.

Run on meta tensors with the launch intercepted, they give the arguments for compiling offline. Shapes are those of
EfficientNet-B0's blocks at batch 8; 24, 40 and 144 channels are multiples of 8 but not of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from effnet_fast.kernels import configs, launchers, tuning
from effnet_fast.kernels.launch import intercept
from torch import Tensor

from effnet_fast.records import DepthwiseIncoming, PointwiseIncoming, Source
from effnet_fast.types import Affine, BatchNormGrad, BatchNormStats, Norm, RunningNorm
from triton_offline.compiler import Launch

#: The first variant of a kernel is its heaviest, the one that every architecture must compile.
Case = Callable[[torch.dtype], object]

_N = 8


def _table(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def _vectors(count: int, channels: int) -> tuple[Tensor, ...]:
    return tuple(_table(channels) for _ in range(count))


def _image(channels: int, size: int, dtype: torch.dtype) -> Tensor:
    shape = (_N, channels, size, size)
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def _weight(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _affine(channels: int) -> Affine:
    return Affine(*_vectors(2, channels))


def _running(channels: int) -> RunningNorm:
    return RunningNorm(*_vectors(4, channels), 1e-3)


def _project(dtype: torch.dtype, **what: object) -> object:
    return launchers.pointwise(_image(240, 28, dtype), _weight(dtype, 40, 240), gate=_table(_N, 240), **what)


def _expand(dtype: torch.dtype, **what: object) -> object:
    return launchers.pointwise(_image(24, 56, dtype), _weight(dtype, 144, 24), **what)


def _project_backward(dtype: torch.dtype, **needs: bool) -> object:
    source = Source(_image(240, 28, dtype), _affine(240), "silu", _table(_N, 240), Norm(*_vectors(2, 240)))
    return launchers.pointwise_backward(_project_incoming(dtype), source, _weight(dtype, 24, 240), **needs)


def _project_incoming(dtype: torch.dtype) -> PointwiseIncoming:
    grad = BatchNormGrad(*_vectors(4, 24))
    return PointwiseIncoming(_image(24, 28, dtype), _image(24, 28, dtype), grad, _table(_N))


def _expand_backward(dtype: torch.dtype, **needs: bool) -> object:
    return launchers.pointwise_backward(
        PointwiseIncoming(_image(24, 56, dtype), _image(24, 56, dtype), BatchNormGrad(*_vectors(4, 24))),
        Source(_image(40, 56, dtype)),
        _weight(dtype, 24, 40),
        residual_grad=_image(40, 56, dtype),
        **needs,
    )


def _depthwise(dtype: torch.dtype, kernel: int, stride: int, **what: object) -> object:
    pad = (kernel // 2,) * 4
    return launchers.depthwise(
        _image(144, 56, dtype), _weight(dtype, 144, 1, kernel, kernel), stride, pad, **what
    )


def _depthwise_backward(dtype: torch.dtype, kernel: int, stride: int, **needs: bool) -> object:
    size = 56 // stride
    excite, grad = (_table(_N, 144), _table(_N, 144)), BatchNormGrad(*_vectors(4, 144))
    return launchers.depthwise_backward(
        DepthwiseIncoming(
            *(_image(144, size, dtype), _image(144, size, dtype), _affine(144), "silu", *excite, grad)
        ),
        Source(_image(144, 56, dtype), _affine(144), "silu", norm=Norm(*_vectors(2, 144))),
        _weight(dtype, 144, 1, kernel, kernel),
        *(stride, (kernel // 2,) * 4),
        **needs,
    )


def _excite(backward: bool, hidden: int) -> object:
    pooled = _table(_N, 240)
    layers = (_table(hidden, 240), *_vectors(1, hidden), _table(240, hidden), *_vectors(1, 240))
    if backward:
        return launchers.squeeze_excite_backward(pooled, pooled, *layers)
    return launchers.squeeze_excite(_table(_N, 5, 240), *layers)


_STATS = BatchNormStats(_table(5, 144))

CASES: dict[str, dict[str, Case]] = {
    "pointwise_fwd": {
        "project, training": lambda d: _project(d, in_affine=_affine(240), in_act="silu", stats=True),
        "project, inference": lambda d: _project(d, affine=_running(40), residual=_image(40, 28, d)),
        "expand, training": lambda d: _expand(d, stats=True),
        "expand, inference": lambda d: _expand(d, affine=_running(144), act="silu"),
        "expand, autocast": lambda d: launchers.pointwise(
            _image(24, 56, d), _weight(torch.float32, 144, 24), affine=_running(144), act="silu"
        ),
        "head": lambda d: _expand(d, affine=_running(144), act="silu", pool=True),
    },
    "pointwise_dgrad": {
        "project": lambda d: _project_backward(d, need_dw=False),
        "expand": lambda d: _expand_backward(d, need_dw=False),
    },
    "pointwise_wgrad": {
        "project": lambda d: launchers.pointwise_backward(
            _project_incoming(d),
            Source(_image(240, 28, d), None, "silu", _table(_N, 240)),
            _weight(d, 24, 240),
            need_dx=False,
        ),
        "expand": lambda d: _expand_backward(d, need_dx=False),
    },
    "pointwise_backward": {"project": _project_backward, "expand": _expand_backward},
    "depthwise_fwd": {
        "5x5, training": lambda d: _depthwise(d, 5, 1, in_affine=_affine(144), in_act="silu", stats=True),
        "3x3 stride 2, inference": lambda d: _depthwise(d, 3, 2, affine=_running(144), act="silu", pool=True),
    },
    "depthwise_dgrad": {
        "5x5": lambda d: _depthwise_backward(d, 5, 1, need_dw=False),
        "3x3 stride 2": lambda d: _depthwise_backward(d, 3, 2, need_dw=False),
    },
    "depthwise_wgrad": {
        "5x5": lambda d: _depthwise_backward(d, 5, 1),
        "3x3 stride 2": lambda d: _depthwise_backward(d, 3, 2),
    },
    "batch_norm_reduce": {
        "activation": lambda d: launchers.batch_norm_reduce(
            _image(144, 28, d), _image(144, 28, d), _STATS.norm, affine=_STATS.affine, act="silu"
        ),
        "drop path": lambda d: launchers.batch_norm_reduce(
            _image(144, 28, d), _image(144, 28, d), _STATS.norm, row_scale=_table(_N)
        ),
    },
    "batch_norm_act_grad": {
        "silu": lambda d: launchers.batch_norm_act_grad(
            _image(144, 28, d),
            _image(144, 28, d),
            BatchNormGrad(*_vectors(4, 144)),
            affine=_STATS.affine,
            act="silu",
        )
    },
    "channel_stats": {"stem": lambda d: launchers.channel_stats(_image(144, 28, d))},
    "affine_pool": {"silu": lambda d: launchers.affine_pool(_image(144, 28, d), _affine(144), "silu")},
    "affine_residual": {
        "all": lambda d: launchers.affine_residual(
            _image(144, 28, d), _affine(144), "silu", _table(_N), _image(144, 28, d)
        ),
        "stem": lambda d: launchers.affine_residual(_image(144, 28, d), _running(144), "silu"),
    },
    "batch_norm_finalize": {
        "": lambda d: launchers.batch_norm_finalize(_table(99, 3, 144), *_vectors(2, 144), 1e-3)
    },
    "batch_norm_fold": {"": lambda d: launchers.batch_norm_fold(*_vectors(4, 144), 1e-3)},
    "batch_norm_backward_finalize": {
        "": lambda d: launchers.batch_norm_backward_finalize(_table(99, 2, 144), 784, _STATS, True)
    },
    "gate_batch_norm_finalize": {
        "": lambda d: launchers.gate_batch_norm_finalize(
            torch.empty(5, _N, 9, 144, dtype=torch.float32, device="meta"),
            *[_table(_N, 144)] * 2,
            784,
            _STATS,
            True,
        )
    },
    "merge_weight_grads": {
        "": lambda d: launchers.merge_weight_grads(
            [
                _table(99, 144 * 24)[:, None],
                torch.empty(99, 25, 144, dtype=torch.float32, device="meta"),
                _table(99, 24 * 144)[:, None],
            ],
            [_weight(d, 144, 24), _weight(d, 144, 1, 5, 5), _weight(d, 24, 144)],
        )
    },
    "sum_partials": {"": lambda d: launchers.affine_pool(_image(144, 56, d), None)},
    "squeeze_excite_fwd": {"": lambda d: _excite(False, 10)},
    "squeeze_excite_bwd": {"": lambda d: _excite(True, 10)},
    "squeeze_excite_wgrad": {"": lambda d: _excite(True, 10)},
    "gate_batch_norm_sums": {
        "": lambda d: launchers.gate_batch_norm_sums(_table(5, _N, 240), *[_table(_N, 240)] * 2)
    },
}

#: Kernels that never see the images' dtype.
VECTOR_KERNELS = frozenset(name for name, cases in CASES.items() if "" in cases)


def launches(kernel: str, dtype: torch.dtype, config: configs.Config) -> Iterator[tuple[str, Launch]]:
    """(variant, launch) for every case of a kernel, with one configuration."""
    for variant, case in CASES[kernel].items():
        caught: list[Launch] = []
        with intercept(lambda *launch: caught.append(Launch(*launch))), tuning.force(kernel, config):  # noqa: B023
            case(dtype)
        yield variant, next(launch for launch in caught if launch.name == kernel)
