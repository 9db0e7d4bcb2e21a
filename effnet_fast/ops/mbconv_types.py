"""What the block's ops take, keep and return, and the order in which their schemas have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..types import BatchNormStats, Padding, Running, RunningNorm

#: Running statistics of the expansion's, the depthwise and the projection's BatchNorm; ``None`` stays as it is.
BlockRunning = tuple[Running | None, Running | None, Running | None]

CONVS = ("expand", "depthwise", "project")
#: The tensors of a block in the order of :attr:`Weights.tensors`, "?" behind what may be missing: of each convolution its
#: weight and its BatchNorm's vectors, then squeeze-and-excite.
TENSORS = (
    *("expand?", "expand_weight?", "expand_bias?", "expand_mean?", "expand_var?"),
    *("depthwise", "depthwise_weight?", "depthwise_bias?", "depthwise_mean?", "depthwise_var?"),
    *("project", "project_weight?", "project_bias?", "project_mean?", "project_var?"),
    *("w1?", "b1?", "w2?", "b2?"),
)
#: Where in it the convolutions' weights are, and where squeeze-and-excite begins.
EXPAND, DEPTHWISE, PROJECT, SE = 0, 5, 10, 15


class BatchNorm(NamedTuple):
    """A BatchNorm's vectors; in the accumulation dtype, but for inference of any floating dtype.

    ``mean`` and ``var`` may be ``None`` when ``training``.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    training: bool
    #: Name of the process group whose batches share the statistics; empty: only this process's batch.
    group: str = ""

    @property
    def running(self) -> RunningNorm:
        """What kernels take of one that normalizes with its running statistics."""
        assert self.mean is not None and self.var is not None
        return RunningNorm(self.weight, self.bias, self.mean, self.var, self.eps)


class Weights(NamedTuple):
    """Everything learnt in a block. No expansion: ``expand`` is ``None``. No squeeze-and-excite: ``w1`` is ``None``."""

    expand: Tensor | None  # [C, Cin]; modules hand the op [C, Cin, 1, 1], here and for the other matrices
    expand_bn: BatchNorm | None
    depthwise: Tensor  # [C, 1, k, k]
    depthwise_bn: BatchNorm
    project: Tensor  # [Cout, C]
    project_bn: BatchNorm
    w1: Tensor | None  # [R, C]
    b1: Tensor | None
    w2: Tensor | None  # [C, R]
    b2: Tensor | None

    @property
    def norms(self) -> tuple[BatchNorm | None, BatchNorm, BatchNorm]:
        return self.expand_bn, self.depthwise_bn, self.project_bn

    @property
    def tensors(self) -> list[Tensor | None]:
        """All of them, in the order of :data:`TENSORS`."""
        expand_norm = (None,) * 4 if self.expand_bn is None else self.expand_bn[:4]
        return [
            *(self.expand, *expand_norm),
            *(self.depthwise, *self.depthwise_bn[:4], self.project, *self.project_bn[:4]),
            *self[6:],
        ]

    @staticmethod
    def of(
        tensors: Sequence[Tensor | None], eps: Sequence[float], training: Sequence[bool], groups: str = ",,"
    ) -> Weights:
        """From :attr:`tensors`; ``groups`` are the three BatchNorms' process groups."""
        parts: list[object] = []
        names = groups.split(",")
        for i in range(3):
            conv, *vectors = tensors[5 * i : 5 * i + 5]
            parts += [conv, None if conv is None else BatchNorm(*vectors, eps[i], training[i], names[i])]
        w1, b1, w2, b2 = tensors[SE:]
        w1, w2 = (None if w is None else w.flatten(1) for w in (w1, w2))
        return Weights(*parts, w1, b1, w2, b2)  # type: ignore[arg-type]

    @property
    def as_matrices(self) -> Weights:
        """1x1 convolutions as [Cout, Cin], every tensor contiguous."""

        def matrix(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.flatten(1).contiguous()

        def norm(bn: BatchNorm) -> BatchNorm:
            return BatchNorm(*map(_contiguous, bn[:4]), *bn[4:])  # type: ignore[arg-type]

        return Weights(
            *(matrix(self.expand), None if self.expand_bn is None else norm(self.expand_bn)),
            *(self.depthwise.contiguous(), norm(self.depthwise_bn)),
            *(matrix(self.project), norm(self.project_bn)),  # type: ignore[arg-type]
            *(matrix(self.w1), _contiguous(self.b1), matrix(self.w2), _contiguous(self.b2)),
        )


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


class Settings(NamedTuple):
    """Everything fixed in a block."""

    stride: int
    padding: Padding
    expand_act: str
    depthwise_act: str
    se_act: str
    gate_act: str
    residual: bool
    #: Keep ``x`` instead of the expansion's output for the backward, which expands again.
    recompute_expand: bool = False


class Saved(NamedTuple):
    """What a training forward keeps for its backward besides ``x`` and the weights."""

    e: Tensor | None  # raw expand output; the backward computes it where it is missing
    d: Tensor  # raw depthwise output
    p: Tensor  # raw project output
    pooled: Tensor | None
    gate: Tensor | None
    expand_stats: BatchNormStats | None
    depthwise_stats: BatchNormStats
    project_stats: BatchNormStats


class Grads(NamedTuple):
    """Gradients, each in the dtype of what it is of; ``None`` where there is nothing or nothing was asked."""

    dx: Tensor | None
    expand: Tensor | None
    expand_bn: Tensor | None  # [2, C]: bias, weight
    depthwise: Tensor | None
    depthwise_bn: Tensor
    project: Tensor | None
    project_bn: Tensor
    w1: Tensor | None
    b1: Tensor | None
    w2: Tensor | None
    b2: Tensor | None


class Needs(NamedTuple):
    """Which of the large gradients are wanted."""

    x: bool
    expand: bool
    depthwise: bool
    project: bool
