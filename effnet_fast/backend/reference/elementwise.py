"""Reference of the two elementwise passes of a training block."""

from __future__ import annotations

from torch import Tensor

from ...types import Affine, RunningNorm
from .common import epilogue, prologue, store


def affine_pool(z: Tensor, affine: Affine | None, act: str = "none") -> Tensor:
    """``mean over H and W of act(affine(z))``, [N, C] in the accumulation dtype; writes nothing of z's size."""
    return prologue(z, affine, act).mean(dim=(2, 3))


def affine_residual(
    z: Tensor,
    affine: Affine | RunningNorm | None,
    act: str = "none",
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(affine(z)) * row_scale + residual`` in z's dtype; ``row_scale`` is [N], ``residual`` as ``z``."""
    return store(epilogue(z, affine, act, row_scale, residual), z)
