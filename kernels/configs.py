"""Tile configurations as data: what every kernel is launched with where the user has not tuned.

A row is (dtype group, shape class, architecture, configuration); ``*`` matches everything and the first row that
matches wins, so the last row of a kernel is the default for unknown GPUs. Rows that never win by matching are
candidates for ``effnet-fast tune``; tests run and compile all of them. dtype groups: ``half`` (float16, bfloat16)
and ``float32``, whose exact products run on the FMA units and want small tiles. Shape classes: see
:func:`shape_class`.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, int]
Row = tuple[str, str, str, Config]

#: Upper bounds of the shape classes; sizes beyond the last are in the last.
CLASSES = {
    "pointwise_fwd": (32, 64, 128),  # cout
    "pointwise_dgrad": (32, 64, 128),  # cin
    "pointwise_wgrad": (32, 64),  # cin
    "pointwise_backward": (32, 64, 128, 256),  # cout; must fit in BLOCK_K
    "squeeze_excite_fwd": (16, 64, 256, 1024),  # hidden; must fit in BLOCK_R
    "squeeze_excite_bwd": (16, 64, 256, 1024),
    "squeeze_excite_wgrad": (16, 64, 256, 1024),
}


def _gemm(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}


def _rows(m: int, n: int, warps: int, stages: int = 2) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}


def _excite(c: int, r: int, warps: int, **more: int) -> Config:
    return {"BLOCK_C": c, "BLOCK_R": r, **more, "num_warps": warps, "num_stages": 2}


TABLE: dict[str, tuple[Row, ...]] = {
    "pointwise_fwd": (
        ("half", "32", "*", _gemm(64, 32, 64, 4, 3)),
        ("half", "64", "*", _gemm(64, 64, 64, 4, 3)),
        ("half", "*", "*", _gemm(64, 128, 32, 4, 3)),
        ("half", "*", "*", _gemm(128, 64, 32, 4, 3)),
        ("half", "*", "*", _gemm(128, 128, 32, 8, 3)),
        ("float32", "32", "*", _gemm(64, 32, 16, 4, 2)),
        ("float32", "*", "*", _gemm(64, 64, 16, 4, 2)),
    ),
    "pointwise_dgrad": (
        ("half", "32", "*", _gemm(64, 32, 32, 4, 2)),
        ("half", "64", "*", _gemm(64, 64, 32, 4, 2)),
        ("half", "*", "*", _gemm(64, 128, 32, 8, 2)),
        ("half", "*", "*", _gemm(64, 64, 64, 4, 2)),
        ("float32", "32", "*", _gemm(64, 32, 16, 4, 2)),
        ("float32", "*", "*", _gemm(64, 64, 16, 8, 2)),
    ),
    "pointwise_wgrad": (
        ("half", "32", "*", _gemm(64, 32, 64, 4, 2)),
        ("half", "*", "*", _gemm(64, 64, 64, 4, 2)),
        ("half", "*", "*", _gemm(32, 128, 64, 8, 2)),
        ("float32", "32", "*", _gemm(32, 32, 64, 4, 2)),
        ("float32", "*", "*", _gemm(32, 64, 64, 8, 2)),
    ),
    "pointwise_backward": (
        ("half", "32", "*", _gemm(64, 64, 32, 4, 2)),
        ("half", "64", "*", _gemm(64, 64, 64, 4, 2)),
        ("half", "128", "*", _gemm(64, 64, 128, 8, 2)),
        ("half", "256", "*", _gemm(32, 32, 256, 8, 2)),
        ("float32", "32", "*", _gemm(32, 64, 32, 4, 2)),
        ("float32", "64", "*", _gemm(32, 32, 64, 4, 2)),
        ("float32", "128", "*", _gemm(16, 32, 128, 8, 2)),
    ),
    "depthwise_fwd": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(16, 64, 4))),
    "depthwise_dgrad": (("*", "*", "*", _rows(32, 64, 8)), ("*", "*", "*", _rows(32, 32, 4))),
    "depthwise_wgrad": (("*", "*", "*", _rows(16, 32, 4)), ("*", "*", "*", _rows(16, 64, 8))),
    "batch_norm_finalize": (("*", "*", "*", _rows(128, 16, 4)),),
    "batch_norm_fold": (("*", "*", "*", {"BLOCK_N": 256, "num_warps": 4, "num_stages": 1}),),
    "batch_norm_reduce": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 32, 4))),
    "batch_norm_backward_finalize": (("*", "*", "*", _rows(128, 16, 4)),),
    "affine_pool": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 64, 8))),
    "affine_residual": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 64, 4))),
    "sum_partials": (("*", "*", "*", _rows(32, 64, 4)),),
    "squeeze_excite_fwd": (
        ("*", "16", "*", _excite(128, 16, 4)),
        ("*", "64", "*", _excite(64, 64, 4)),
        ("*", "256", "*", _excite(32, 256, 8)),
        ("*", "*", "*", _excite(8, 1024, 8)),
    ),
    "squeeze_excite_bwd": (
        ("*", "16", "*", _excite(128, 16, 4)),
        ("*", "64", "*", _excite(64, 64, 4)),
        ("*", "256", "*", _excite(16, 256, 8)),
        ("*", "*", "*", _excite(4, 1024, 8)),
    ),
    "squeeze_excite_wgrad": (
        ("*", "16", "*", _excite(32, 16, 4, BLOCK_I=16)),
        ("*", "64", "*", _excite(16, 64, 4, BLOCK_I=16)),
        ("*", "256", "*", _excite(16, 256, 8, BLOCK_I=16)),
        ("*", "*", "*", _excite(16, 1024, 16, BLOCK_I=16)),
    ),
    "gate_batch_norm_sums": (("*", "*", "*", {"BLOCK_N": 256, "num_warps": 4, "num_stages": 1}),),
}


def dtype_group(dtype: Any) -> str:
    """``half`` or ``float32``, from a torch dtype or its name."""
    return "float32" if str(dtype).endswith("float32") else "half"


def shape_class(kernel: str, size: int) -> str:
    """The upper bound of the class that ``size`` (the channel count the tile follows) is in, as text."""
    bounds = CLASSES.get(kernel)
    if not bounds:
        return "*"
    return str(next((bound for bound in bounds if size <= bound), bounds[-1]))


def rows(kernel: str, group: str, klass: str, arch: str) -> list[Config]:
    """Configurations that may serve such a launch, the default first."""

    def fits(config: Config) -> bool:
        # A class bounds what must fit into one block: a config of a smaller class may not serve a larger one.
        block = {"pointwise_backward": "BLOCK_K"}.get(
            kernel, "BLOCK_R" if kernel.startswith("squeeze") else None
        )
        return block is None or klass == "*" or config[block] >= int(klass)

    return [
        config
        for dtypes, shapes, archs, config in TABLE[kernel]
        if dtypes in ("*", group) and shapes in ("*", klass) and archs in ("*", arch) and fits(config)
    ]
