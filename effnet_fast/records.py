"""What belongs together among the arguments of the kernels' backwards, as one record each.

A record lists its tensors in the order of its twin in ``csrc/common/records.h``, which is how native code takes it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .types import Affine, BatchNormGrad, ConvGrad, Norm

_NONE = (None, None)
_NO_GRAD = (None, None, None, None)


class Source(NamedTuple):
    """What a convolution read in its forward: ``gate * act(affine(x))``, each part optional."""

    x: Tensor  # [N, C, H, W]
    affine: Affine | None = None
    act: str = "none"
    gate: Tensor | None = None  # [N, C]; of pointwise alone
    #: What ``x`` is normalized with, for the sums that a backward makes behind an affine.
    norm: Norm | None = None

    @property
    def tensors(self) -> list[Tensor | None]:
        x, affine, _, gate, norm = self
        return [x, *(affine or _NONE), gate, *(norm or _NONE)]


class DepthwiseIncoming(NamedTuple):
    """What comes to a depthwise convolution from behind, each part but ``dy`` optional.

    ``g = (dy * gate + pool_grad) * act'(affine(z))``, ``dz = grad.a * g + grad.b * (z - grad.mean) + grad.c``.
    """

    dy: Tensor  # [N, C, Ho, Wo]
    z: Tensor | None = None  # as dy: the convolution's raw output
    affine: Affine | None = None
    act: str = "none"
    gate: Tensor | None = None  # [N, C]
    pool_grad: Tensor | None = None  # [N, C], already divided by H * W
    grad: BatchNormGrad | None = None

    @property
    def used(self) -> DepthwiseIncoming:
        """Without a ``z`` that nothing asks for; without ``z``, without what it takes one to go back through."""
        if self.z is None:
            return self._replace(affine=None, act="none", grad=None)
        return self._replace(z=None, affine=None) if self.act == "none" and self.grad is None else self

    @property
    def tensors(self) -> list[Tensor | None]:
        dy, z, affine, _, gate, pool_grad, grad = self
        return [dy, z, *(affine or _NONE), gate, pool_grad, *(grad or _NO_GRAD)]


class PointwiseIncoming(NamedTuple):
    """What comes to a 1x1 convolution from behind, each part but ``dy`` optional.

    ``dz = grad.a * (row_scale * dy) + grad.b * (z - grad.mean) + grad.c``.
    """

    dy: Tensor  # [N, Cout, H, W]
    z: Tensor | None = None  # as dy: the convolution's raw output
    grad: BatchNormGrad | None = None
    row_scale: Tensor | None = None  # [N]

    @property
    def used(self) -> PointwiseIncoming:
        """With ``z`` and ``grad``, or with neither."""
        return self._replace(z=None, grad=None) if self.z is None or self.grad is None else self

    @property
    def tensors(self) -> list[Tensor | None]:
        dy, z, grad, row_scale = self
        return [dy, z, *(grad or _NO_GRAD), row_scale]


def conv_grad(
    source: Source, dx: Tensor, dweight: Tensor, sums: Tensor, need_dx: bool, need_dw: bool
) -> ConvGrad:
    """What a native backward returned, without the empty tensors that stand for what was not asked for."""
    behind_affine = source.affine is not None
    return ConvGrad(
        dx if need_dx or behind_affine else None,
        dweight if need_dw else None,
        sums if behind_affine else None,
    )
