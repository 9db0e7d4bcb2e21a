"""Tile configurations as data: what every kernel is launched with where the user has not tuned.

A row is (arithmetic, shape class, architecture, configuration); ``*`` matches everything and the first row that
matches wins, so the last row of a kernel is the default for unknown GPUs. Rows that never win by matching are
candidates for ``effnet-fast tune``; tests run and compile all of them. Arithmetic: ``mma`` where dots run on tensor
cores (float16 and bfloat16), ``fma`` where they run on the FMA units and want small tiles: ``fma32`` is float32, whose
tiles TF32 shares, and ``fma16`` is float16 on sm_75, for which Triton emits no tensor-core instruction.
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
    "pointwise_backward": (32, 64, 128),  # cout; must fit in BLOCK_K, or one kernel per gradient runs instead
    "squeeze_excite_fwd": (16, 64, 256, 1024),  # hidden; must fit in BLOCK_R
    "squeeze_excite_bwd": (16, 64, 256, 1024),
    "squeeze_excite_wgrad": (16, 32),  # hidden
}

#: Where one tile must hold all of the size that decides the class.
MUST_HOLD = {
    "pointwise_backward": "BLOCK_K",
    "squeeze_excite_fwd": "BLOCK_R",
    "squeeze_excite_bwd": "BLOCK_R",
}


def _gemm(m: int, n: int, k: int, warps: int, stages: int, **more: int) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages, **more}


def _rows(m: int, n: int, warps: int, stages: int = 2, **more: int) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages, **more}


def _excite(c: int, r: int, warps: int, **more: int) -> Config:
    return {"BLOCK_C": c, "BLOCK_R": r, **more, "num_warps": warps, "num_stages": 2}


TABLE: dict[str, tuple[Row, ...]] = {
    "pointwise_fwd": (
        # A depth of 64 spills 8 bytes on sm_120, with limits of 168 and 255 (Triton 3.8) and without (3.6).
        # On sm_90 and sm_100 it has 8 to 16 at 168. On sm_80 the sizes of real networks have 24 at 168 and 8 at 255; at a depth
        # of 32 they take up to 241 registers.
        ("mma", "32", "sm_80", _gemm(64, 32, 32, 4, 3, maxnreg=255)),
        *(("mma", "32", arch, _gemm(64, 32, 64, 4, 3, maxnreg=255)) for arch in ("sm_90", "sm_100")),
        # At 128 registers stage 1 of B0 spills 8 bytes on sm_120 (Triton 3.8).
        ("mma", "32", "*", _gemm(64, 32, 32, 4, 3, maxnreg=255)),
        # With 4 warps the sizes of real networks spill 8 bytes at a depth of 64 and a limit of 255 (sm_90), 48 to 216 at a
        # depth of 32 and limits of 128 and 168. With 8, sm_100 spills up to 16 without a limit and sm_120 up to 24 at a depth of
        # 64, whatever the limit, and up to 16 at a limit of 168.
        *(("mma", "64", arch, _gemm(64, 64, 64, 8, 3)) for arch in ("sm_80", "sm_90")),
        ("mma", "64", "sm_100", _gemm(64, 64, 64, 8, 3, maxnreg=255)),
        ("mma", "64", "*", _gemm(64, 64, 32, 8, 3, maxnreg=255)),
        ("mma", "*", "*", _gemm(64, 128, 32, 8, 3)),
        ("mma", "*", "*", _gemm(128, 64, 32, 8, 3)),
        # Of float32, sm_120 spills 8 bytes at 128 (Triton 3.6) or 168 (3.8).
        ("fma32", "32", "*", _gemm(64, 32, 16, 4, 2, maxnreg=255)),
        # At 128 registers the sizes of real networks spill up to 48 (Triton 3.8).
        ("fma16", "32", "*", _gemm(64, 32, 16, 4, 2, maxnreg=168)),
        ("fma32", "*", "*", _gemm(64, 64, 16, 8, 2, maxnreg=168)),
        # With 8 warps a thread's part of x is 8 bytes. At 168 registers it spills up to 80.
        ("fma16", "*", "*", _gemm(64, 64, 16, 4, 2, maxnreg=255)),
    ),
    "pointwise_dgrad": (
        ("mma", "32", "*", _gemm(64, 32, 32, 4, 2)),
        ("mma", "64", "*", _gemm(64, 64, 32, 4, 2)),
        # With 64 rows up to 472 bytes spilled at the sizes of real networks (sm_90, Triton 3.6).
        # With 32, sm_80 spills 8 without a limit (Triton 3.8), up to 280 at 168.
        *(("mma", "*", arch, _gemm(32, 128, 32, 8, 2)) for arch in ("sm_90", "sm_100", "sm_120")),
        ("mma", "*", "*", _gemm(32, 128, 32, 8, 2, maxnreg=255)),
        ("mma", "*", "*", _gemm(64, 64, 64, 4, 2)),
        ("fma", "32", "*", _gemm(64, 32, 16, 4, 2)),
        ("fma", "*", "*", _gemm(64, 64, 16, 8, 2)),
    ),
    "pointwise_wgrad": (
        # Without a limit ptxas stops at 80, 96 or 128 registers and spills 8 bytes. 64x32 spills up to 56 at 168.
        ("mma", "32", "*", _gemm(64, 32, 64, 4, 2, maxnreg=255)),
        # At 168 and at the sizes of real networks 8 to 80.
        ("mma", "*", "*", _gemm(32, 64, 64, 4, 2, maxnreg=255)),
        ("mma", "*", "*", _gemm(32, 128, 64, 8, 2, maxnreg=168)),
        ("fma", "32", "*", _gemm(32, 32, 32, 4, 2)),
        ("fma", "*", "*", _gemm(32, 32, 64, 8, 2)),
    ),
    "pointwise_backward": (
        # On sm_80 (Triton 3.8) some layers of B0, B1, B4 and B5 spill 8 to 16 bytes, with a limit of 255 and without: at a depth of
        # 128 with 64 columns and 1, 2 or 4 stages, or with 32 and 4 warps; at a depth of 64 with two stages.
        ("mma", "128", "sm_80", _gemm(16, 32, 128, 8, 2)),
        ("mma", "*", "sm_80", _gemm(16, 64, 64, 8, 1, maxnreg=255)),
        ("mma", "128", "*", _gemm(16, 64, 128, 8, 2)),
        # Without a limit 8 and 16 bytes spilled on sm_100 (Triton 3.6). With 4 warps some layers of 40 columns spill up
        # to 16 on sm_90 (Triton 3.6).
        ("mma", "*", "*", _gemm(16, 64, 64, 8, 2, maxnreg=255)),
        ("mma", "*", "*", _gemm(16, 64, 64, 4, 2, maxnreg=255)),
        # Wider outputs take a kernel per gradient: 64 columns on the FMA units spill 232 bytes. With 8 warps the tile
        # is too small for 16-byte reads of 2-byte numbers.
        ("fma32", "32", "*", _gemm(16, 32, 32, 8, 2)),
        ("fma16", "32", "*", _gemm(16, 32, 32, 4, 2)),
    ),
    # ptxas hoists loads up to the limit and overshoots by 8 to 48 bytes, which it spills: at 128, 160 and 168
    # registers, and where it chooses the limit. Up to 255 there is room, for 8 warps a multiprocessor in 5x5 (dgrad of
    # 64 columns has as many at 168). The forward of 32 columns, half as much a thread, also has room at 168.
    "depthwise_fwd": (
        ("*", "*", "*", _rows(16, 64, 4, maxnreg=255)),
        ("*", "*", "*", _rows(16, 32, 4, maxnreg=168)),
    ),
    "depthwise_dgrad": (
        ("*", "*", "*", _rows(16, 64, 8, maxnreg=255)),
        ("*", "*", "*", _rows(16, 32, 4, maxnreg=255)),
    ),
    # Without a limit 8 bytes spilled on sm_90 (Triton 3.6).
    "depthwise_wgrad": (("*", "*", "*", _rows(16, 32, 4, maxnreg=255)), ("*", "*", "*", _rows(16, 64, 8))),
    "batch_norm_finalize": (("*", "*", "*", _rows(128, 16, 4)),),
    "channel_stats": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 32, 4))),
    "batch_norm_fold": (("*", "*", "*", {"BLOCK_N": 256, "num_warps": 4, "num_stages": 1}),),
    "batch_norm_reduce": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 32, 4))),
    "batch_norm_backward_finalize": (("*", "*", "*", _rows(128, 16, 4)),),
    # Six vectors a row instead of two.
    "gate_batch_norm_finalize": (("*", "*", "*", _rows(64, 16, 4)),),
    "affine_pool": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 64, 8))),
    "affine_residual": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 64, 4))),
    "batch_norm_act_grad": (("*", "*", "*", _rows(32, 64, 4)), ("*", "*", "*", _rows(64, 64, 4))),
    "sum_partials": (("*", "*", "*", _rows(32, 64, 4)),),
    "merge_weight_grads": (("*", "*", "*", _rows(32, 64, 4)),),
    "squeeze_excite_fwd": (
        # Without a limit 8 bytes spilled in the first block of B0, fp16, batch 1 (sm_90, Triton 3.8).
        ("*", "16", "*", _excite(128, 16, 4, maxnreg=128)),
        ("*", "64", "*", _excite(64, 64, 4)),
        # Without a limit ptxas stops at 96 registers and spills 8 bytes in one layer of B2 (sm_90, Triton 3.8).
        ("*", "256", "*", _excite(32, 256, 8, maxnreg=128)),
        ("*", "*", "*", _excite(8, 1024, 8)),
    ),
    "squeeze_excite_bwd": (
        # Without a limit 8 bytes spilled in the first blocks of B0 and B5 (sm_80, Triton 3.8), with 128 it takes 117 registers
        # there; sm_75 spills 32 with it and none without.
        ("*", "16", "sm_75", _excite(128, 16, 4)),
        ("*", "16", "*", _excite(128, 16, 4, maxnreg=128)),
        ("*", "64", "*", _excite(64, 64, 4)),
        # Without a limit 8 bytes spilled on sm_100 (Triton 3.6).
        ("*", "256", "*", _excite(8, 256, 8, maxnreg=128)),
        ("*", "*", "*", _excite(4, 1024, 8)),
    ),
    "squeeze_excite_wgrad": (
        ("*", "16", "*", _excite(32, 16, 4, BLOCK_I=32)),
        # With 4 warps one layer of B2 in float16 spills 16 bytes on sm_90 (Triton 3.6), with limits or one stage others do; with 8
        # it does on sm_120.
        ("*", "*", "sm_90", _excite(32, 32, 8, BLOCK_I=32)),
        ("*", "*", "*", _excite(32, 32, 4, BLOCK_I=32)),
    ),
    "gate_batch_norm_sums": (("*", "*", "*", {"BLOCK_N": 256, "num_warps": 4, "num_stages": 1}),),
}


def arithmetic(dtype: Any, arch: str) -> str:
    """``mma``, ``fma32`` or ``fma16``, from a torch dtype and an architecture such as ``sm_90``."""
    if str(dtype).endswith("float32"):
        return "fma32"
    return "fma16" if arch == "sm_75" else "mma"


def shape_class(kernel: str, size: int) -> str:
    """The upper bound of the class that ``size`` (the channel count the tile follows) is in, as text."""
    bounds = CLASSES.get(kernel)
    if not bounds:
        return "*"
    return str(next((bound for bound in bounds if size <= bound), bounds[-1]))


def rows(kernel: str, dtype: Any, arch: str, klass: str | None = None) -> list[Config]:
    """Configurations that may serve launches of a shape class (``None``: of any), the default first, each once."""
    units, block, found = arithmetic(dtype, arch), MUST_HOLD.get(kernel), []
    for wanted, shapes, archs, config in TABLE[kernel]:
        serves = klass is None or (shapes in ("*", klass) and (block is None or config[block] >= int(klass)))
        if serves and wanted in ("*", units, units[:3]) and archs in ("*", arch) and config not in found:
            found.append(config)
    return found
