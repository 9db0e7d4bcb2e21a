"""The launches of a network under three designs, for inference and for training.

``eager``: one kernel per PyTorch module. ``compiled``: convolutions alone, what lies between them fused, as an
ideal ``torch.compile`` has it (an assumption, not a trace). ``fused``: this package's kernels (docs/design.md).
Letters as there: x block input, e expanded, d depthwise output, p block output; a prime marks a backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .blocks import Block, Network

CLASSES = 1000


class Kernel(NamedTuple):
    """Work of one launch for one image; parameters are read once a batch."""

    name: str
    elements: float  # activations read plus written
    parameters: float = 0.0
    dense: float = 0.0  # multiply-adds of matrix products
    stencil: float = 0.0  # multiply-adds of depthwise convolutions
    silu: float = 0.0  # evaluations of SiLU or its derivative


class _Conv(NamedTuple):
    """A convolution with its BatchNorm: input and output elements, parameters, multiply-adds."""

    name: str
    i: float
    o: float
    parameters: float
    dense: float = 0.0
    stencil: float = 0.0
    act: bool = True

    def kernel(self, suffix: str = "", elements: float | None = None, silu: float = 0.0) -> Kernel:
        elements = self.i + self.o if elements is None else elements
        return Kernel(self.name + suffix, elements, self.parameters, self.dense, self.stencil, silu)


class _Parts(NamedTuple):
    """A block's convolutions and what surrounds them."""

    expand: _Conv | None
    depthwise: _Conv
    project: _Conv
    channels: float
    squeeze: float
    residual: bool

    @property
    def convs(self) -> list[_Conv]:
        return [conv for conv in (self.expand, self.depthwise, self.project) if conv is not None]

    @property
    def fc(self) -> float:
        """Parameters of squeeze-and-excite."""
        return 2 * self.channels * self.squeeze + self.squeeze + self.channels


def _parts(b: Block) -> _Parts:
    x, d, p = b.in_channels * b.size**2, b.channels * b.out_size**2, b.out_channels * b.out_size**2
    e = b.channels * b.size**2
    wide, narrow = b.in_channels * b.channels, b.channels * b.out_channels
    taps = b.kernel_size**2
    return _Parts(
        _Conv("expand", x, e, wide, dense=wide * b.size**2) if b.expands else None,
        _Conv("depthwise", e, d, taps * b.channels, stencil=taps * d),
        _Conv("project", d, p, narrow, dense=narrow * b.out_size**2, act=False),
        b.channels,
        b.squeeze,
        b.residual,
    )


def _stem(n: Network) -> _Conv:
    out = n.stem_channels * n.stem_size**2
    return _Conv("stem", 3 * n.resolution**2, out, 27 * n.stem_channels, dense=27 * out)


def _head(n: Network) -> _Conv:
    area, weights = n.head_size**2, n.head_in * n.head_channels
    return _Conv("head", n.head_in * area, n.head_channels * area, weights, dense=weights * area)


def _classifier(n: Network, times: int = 1, outputs: float = CLASSES) -> Kernel:
    weights = n.head_channels * CLASSES
    return Kernel("classifier", n.head_channels + outputs, times * (weights + CLASSES), times * weights)


def _eager(n: Network) -> Iterator[Kernel]:
    def conv(c: _Conv) -> Iterator[Kernel]:
        yield c.kernel()
        yield Kernel("bn", 2 * c.o)
        if c.act:
            yield Kernel("silu", 2 * c.o, silu=c.o)

    yield from conv(_stem(n))
    for parts in map(_parts, n.blocks):
        d, c, r = parts.depthwise.o, parts.channels, parts.squeeze
        for part in parts.convs[:-1]:
            yield from conv(part)
        yield Kernel("pool", d + c)
        yield Kernel("fc1", c + r, parts.fc / 2)
        yield Kernel("silu", 2 * r)
        yield Kernel("fc2", r + c, parts.fc / 2)
        yield Kernel("sigmoid", 2 * c)
        yield Kernel("scale", 2 * d + c)
        yield from conv(parts.project)
        if parts.residual:
            yield Kernel("add", 3 * parts.project.o)
    yield from conv(_head(n))
    yield Kernel("pool", _head(n).o + n.head_channels)
    yield _classifier(n)


def _compiled(n: Network) -> Iterator[Kernel]:
    def conv(c: _Conv) -> Iterator[Kernel]:
        yield c.kernel()
        yield Kernel("bn+silu", 2 * c.o, silu=c.o)

    yield from conv(_stem(n))
    for parts in map(_parts, n.blocks):
        d, c, p = parts.depthwise.o, parts.channels, parts.project.o
        if parts.expand is not None:
            yield from conv(parts.expand)
        yield parts.depthwise.kernel()
        yield Kernel("bn+silu+pool", d + c, silu=d)
        yield Kernel("fc1", 2 * c, parts.fc / 2)
        yield Kernel("fc2", 2 * c, parts.fc / 2)
        yield Kernel("bn+silu+scale", 2 * d, silu=d)
        yield parts.project.kernel()
        yield Kernel("bn+add", 2 * p + (p if parts.residual else 0))
    head = _head(n)
    yield head.kernel()
    yield Kernel("bn+silu+pool", head.o, silu=head.o)
    yield _classifier(n)


def _fused(n: Network) -> Iterator[Kernel]:
    stem, head = _stem(n), _head(n)
    yield stem.kernel(silu=stem.o)
    for parts in map(_parts, n.blocks):
        p = parts.project
        for conv in parts.convs[:-1]:
            yield conv.kernel(silu=conv.o)
        yield Kernel("squeeze_excite", 2 * parts.channels, parts.fc)
        yield p.kernel(elements=p.i + p.o * (2 if parts.residual else 1))
    yield head.kernel(elements=head.i + n.head_channels, silu=head.o)
    yield _classifier(n)


def _eager_training(n: Network) -> Iterator[Kernel]:
    # In-place SiLU under autograd copies its input first. BatchNorm reads once for the statistics and once more to
    # normalize; its backward reads two tensors twice and writes one.
    def forward(c: _Conv) -> Iterator[Kernel]:
        yield c.kernel()
        yield Kernel("bn", 3 * c.o)
        if c.act:
            yield Kernel("copy", 2 * c.o)
            yield Kernel("silu", 2 * c.o, silu=c.o)

    def backward(c: _Conv, dgrad: bool = True) -> Iterator[Kernel]:
        if c.act:
            yield Kernel("silu'", 3 * c.o, silu=c.o)
        yield Kernel("bn'", 5 * c.o)
        if dgrad:
            yield c.kernel(".dgrad")
        yield c.kernel(".wgrad")

    blocks, head = [_parts(b) for b in n.blocks], _head(n)
    yield from forward(_stem(n))
    for parts in blocks:
        d, c, p = parts.depthwise.o, parts.channels, parts.project.o
        for conv in parts.convs[:-1]:
            yield from forward(conv)
        yield Kernel("pool", d)
        yield Kernel("fc1", 2 * c, parts.fc)
        yield Kernel("fc2", 2 * c, parts.fc)
        yield Kernel("scale", 2 * d)
        yield from forward(parts.project)
        if parts.residual:
            yield Kernel("drop+add", 5 * p)
    yield from forward(head)
    yield Kernel("pool", head.o)
    yield _classifier(n, 3, n.head_channels)
    yield Kernel("pool'", head.o)
    yield from backward(head)
    for parts in reversed(blocks):
        d = parts.depthwise.o
        if parts.residual:
            yield Kernel("drop'+add'", 2 * parts.project.o + 3 * parts.project.o)
        yield from backward(parts.project)
        # The gate's product: 6; the pool's gradient spread: 1; their sum: 3.
        yield Kernel("scale'+pool'", 10 * d)
        yield Kernel("fc'", 4 * parts.channels, 2 * parts.fc)
        for conv in reversed(parts.convs[:-1]):
            yield from backward(conv)
    yield from backward(_stem(n), dgrad=False)


def _compiled_training(n: Network) -> Iterator[Kernel]:
    def forward(c: _Conv) -> Iterator[Kernel]:
        yield c.kernel()
        yield Kernel("statistics", c.o)

    def backward(c: _Conv, dgrad: bool = True) -> Iterator[Kernel]:
        silu = c.o if c.act else 0
        yield Kernel("reduce", 2 * c.o, silu=silu)
        yield Kernel("elementwise", 3 * c.o, silu=silu)
        if dgrad:
            yield c.kernel(".dgrad")
        yield c.kernel(".wgrad")

    blocks, stem, head = [_parts(b) for b in n.blocks], _stem(n), _head(n)
    yield from forward(stem)
    yield Kernel("bn+silu", 2 * stem.o, silu=stem.o)
    for parts in blocks:
        d, p, e = parts.depthwise.o, parts.project.o, parts.expand
        if e is not None:
            yield from forward(e)
            yield Kernel("bn+silu", 2 * e.o, silu=e.o)
        yield from forward(parts.depthwise)
        yield Kernel("bn+silu+pool", d, silu=d)
        yield Kernel("squeeze_excite", 4 * parts.channels, parts.fc)
        yield Kernel("bn+silu+scale", 2 * d, silu=d)
        yield from forward(parts.project)
        yield Kernel("bn+add", 2 * p + (p if parts.residual else 0))
    yield from forward(head)
    yield Kernel("bn+silu+pool", head.o, silu=head.o)
    yield _classifier(n, 3, n.head_channels)
    yield Kernel("reduce", head.o, silu=head.o)
    yield Kernel("elementwise", 2 * head.o, silu=head.o)
    yield head.kernel(".dgrad")
    yield head.kernel(".wgrad")
    for parts in reversed(blocks):
        d = parts.depthwise.o
        yield from backward(parts.project)
        yield Kernel("scale'", 2 * d, silu=d)
        yield Kernel("fc'", 4 * parts.channels, 2 * parts.fc)
        for conv in reversed(parts.convs[:-1]):
            yield from backward(conv)
        if parts.residual:
            yield Kernel("add'", 3 * parts.project.o)
    yield from backward(stem, dgrad=False)


def _fused_training(n: Network) -> Iterator[Kernel]:
    # Kept for the backward: x, e, d, p. BatchNorm and SiLU are recomputed in prologues.
    blocks, stem, head = [_parts(b) for b in n.blocks], _stem(n), _head(n)
    yield stem.kernel()
    for parts in blocks:
        e, d, p = parts.expand, parts.depthwise, parts.project
        if e is not None:
            yield e.kernel()
        yield d.kernel(silu=d.i)
        yield Kernel("pool", d.o, silu=d.o)
        yield Kernel("squeeze_excite", 2 * parts.channels, parts.fc)
        yield p.kernel(silu=d.o)
        yield Kernel("bn+add", p.o * (3 if parts.residual else 2))
    yield head.kernel()
    yield Kernel("pool", head.o, silu=head.o)
    yield _classifier(n, 3, n.head_channels)
    yield Kernel("reduce", head.o, silu=head.o)
    for suffix in (".dgrad", ".wgrad"):
        yield head.kernel(suffix, silu=head.o)
    for parts in reversed(blocks):
        e, d, p = parts.expand, parts.depthwise, parts.project
        yield Kernel("reduce", 2 * p.o)
        yield p.kernel(".dgrad", 2 * p.o + 2 * d.o, d.o)
        yield p.kernel(".wgrad", 2 * p.o + d.o, d.o)
        yield Kernel("fc'", 4 * parts.channels, 2 * parts.fc)
        yield d.kernel(".dgrad", 2 * d.o + 2 * d.i, d.o + d.i)
        yield d.kernel(".wgrad", 2 * d.o + d.i, d.o + d.i)
        if e is not None:
            yield e.kernel(".dgrad", 2 * e.o + e.i + (p.o if parts.residual else 0))
            yield e.kernel(".wgrad", 2 * e.o + e.i)
    yield stem.kernel(".wgrad", 2 * stem.o + stem.i)


DESIGNS: dict[tuple[str, str], Callable[[Network], Iterator[Kernel]]] = {
    ("eager", "infer"): _eager,
    ("compiled", "infer"): _compiled,
    ("fused", "infer"): _fused,
    ("eager", "train"): _eager_training,
    ("compiled", "train"): _compiled_training,
    ("fused", "train"): _fused_training,
}
