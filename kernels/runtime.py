"""Whether and how the Triton backend runs here: refusals, precision, the split of rows over programs.

Importable without Triton and without touching CUDA, so that ``can_run`` can always answer.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..types import stencil_refusal
from . import configs

#: Triton decides when a kernel is decorated; so does this, once, from the same variable.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")

#: Hidden units of squeeze-and-excite that a tile holds; EfficientNet-B7 has 160.
MAX_HIDDEN = configs.CLASSES["squeeze_excite_fwd"][-1]

#: Programs a reducing kernel aims at, all column tiles together: enough for every multiprocessor of today's GPUs
#: several times over, few enough that partial results cost nothing (1.5 MB of statistics at 64 columns a tile). A
#: constant, so that sums do not depend on the GPU's size.
PROGRAMS = 2048


def can_run(op: str, device: torch.device, dtype: torch.dtype, **facts: Any) -> tuple[bool, str]:
    """Whether ``op`` runs on Triton for tensors of this device and dtype, and if not, why.

    Of ``facts`` matter ``hidden``, the hidden units of squeeze-and-excite, which one tile must hold, and ``kernel_size``
    and ``stride``: others work but are neither compiled nor timed beforehand. CUDA is only looked at when ``device`` is a
    CUDA device.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False, f"{dtype} is not float32, float16 or bfloat16"
    if facts.get("hidden", 0) > MAX_HIDDEN:
        return False, f"its squeeze-and-excite has at most {MAX_HIDDEN} hidden units, not {facts['hidden']}"
    refusal = stencil_refusal(**facts)
    if refusal:
        return False, refusal
    if importlib.util.find_spec("triton") is None:
        return False, "the triton package is not installed"
    if device.type != "cuda":
        if INTERPRET and device.type == "cpu":
            return True, ""
        return (
            False,
            f"tensors are on {device}, not on a CUDA device, and TRITON_INTERPRET=1 was not set at import",
        )
    if INTERPRET:
        return True, ""
    if not torch.cuda.is_available():
        return False, "no CUDA device is available"
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 5):
            return False, f"compute capability {capability[0]}.{capability[1]} is older than 7.5"
        if dtype == torch.bfloat16 and capability < (8, 0):
            return (
                False,
                f"compute capability {capability[0]}.{capability[1]} has no bfloat16 tensor cores (8.0 has)",
            )
    return True, ""


def dot_options(x: Tensor) -> dict[str, Any]:
    """``PRECISION``, ``UPCAST`` and ``INTERPRET`` of the GEMM kernels.

    float32 follows the setting for convolutions (``torch.backends.cudnn``), which these are: TF32 unless switched off. ``UPCAST`` is for the
    interpreter alone, whose bfloat16 dot multiplies raw bits.
    """
    precision = "ieee"
    if x.dtype == torch.float32 and x.is_cuda and tf32_allowed():
        precision = "tf32"
    return {"PRECISION": precision, "UPCAST": INTERPRET and x.dtype == torch.bfloat16, "INTERPRET": INTERPRET}


def tf32_allowed() -> bool:
    """Whether float32 products may be rounded to TF32: the setting for convolutions."""
    cudnn = torch.backends.cudnn
    for holder in (getattr(cudnn, "conv", None), cudnn, torch.backends):
        setting = getattr(holder, "fp32_precision", None)
        if setting not in (None, "none"):
            return bool(setting == "tf32")
    return bool(cudnn.allow_tf32)


def channel_unit(channels: int) -> int:
    """8 where the channel count allows, else 1.

    Kernels receive ``channels // unit`` and multiply: that tells the compiler of a multiple of 8, hence 16-byte
    accesses, for EfficientNet's 24, 40, 56 and so on. Triton finds out by itself about multiples of 16 only.
    """
    return 8 if channels % 8 == 0 else 1


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class RowPlan(NamedTuple):
    """How rows are shared out: ``segments`` runs (images, or one run of all rows) of ``length`` rows each.

    A program takes ``per_program`` whole segments, or one of the ``splits`` parts of one segment; a part is
    ``span`` tiles. What a program reduces it writes as one partial row, so results do not depend on scheduling.
    """

    segments: int
    length: int
    splits: int
    span: int
    per_program: int

    @property
    def groups(self) -> int:
        """Programs per column of tiles; the number of partial rows."""
        return ceil_div(self.segments, self.per_program) * self.splits

    @property
    def arguments(self) -> tuple[int, int, int, int, int]:
        """In the order in which kernels take them."""
        return (self.segments, self.length, self.splits, self.span, self.per_program)


def per_column(tiles: int) -> int:
    """Programs a reducing kernel gives each of its column tiles."""
    return max(1, PROGRAMS // tiles)


def plan_rows(segments: int, length: int, block: int, programs: int | None = None) -> RowPlan:
    """Share ``segments * length`` rows out in tiles of ``block`` rows that never cross a segment.

    ``programs`` bounds the number of partial rows; ``None`` is for kernels that reduce nothing: a program per tile.
    """
    tiles = ceil_div(length, block)
    if programs is None:
        return RowPlan(segments, length, tiles, 1, 1)
    if segments >= programs:
        return RowPlan(segments, length, 1, tiles, ceil_div(segments, programs))
    span = ceil_div(tiles, min(tiles, max(1, programs // segments)))
    return RowPlan(segments, length, ceil_div(tiles, span), span, 1)
