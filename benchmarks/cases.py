"""What the suites compute: the stock PyTorch module of each kind of shape, and the same through this package."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.shapes import Shape
from effnet_fast import ops, patch
from effnet_fast.bench import designs, roofline
from effnet_fast.bench.blocks import Block, Network
from effnet_fast.inference.check import cast
from effnet_fast.nn.mbconv import MBConv

Outputs = dict[str, Tensor]


class Case(NamedTuple):
    """One operation on one shape, in one mode."""

    name: str
    mode: str  # infer, train
    module: nn.Module  # stock; returns a tensor or a tuple of tensors
    ours: Callable[[nn.Module], Callable[[Tensor], Any]]  # the same computation with a module's parameters
    x: Tensor  # contiguous
    bytes: float  # that a kernel reading and writing every tensor once would move
    outputs: tuple[str, ...] = ("y",)


def _cast(module: nn.Module, x: Tensor, mode: str) -> nn.Module:
    module = module.to(x.device).train(mode == "train")
    return cast(module, x.dtype)


def _image(shape: Shape, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, shape.in_channels, shape.size, shape.size, device=device).to(dtype)


def _conv(shape: Shape, groups: int) -> nn.Conv2d:
    kernel = shape.kernel_size
    return nn.Conv2d(
        *(shape.in_channels, shape.out_channels, kernel, shape.stride, kernel // 2),
        groups=groups,
        bias=False,
    )


def _conv_bytes(shape: Shape, x: Tensor, mode: str) -> float:
    out = -(-shape.size // shape.stride)
    read, written = x.numel(), len(x) * shape.out_channels * out**2
    groups = shape.in_channels if shape.kernel_size > 1 else 1
    weight = shape.in_channels // groups * shape.out_channels * shape.kernel_size**2
    # The backward reads the output's gradient and the input and writes the input's gradient.
    times = (1, 1, 1) if mode == "infer" else (3, 2, 3)
    return x.element_size() * (times[0] * read + times[1] * written + times[2] * weight)


def depthwise(shape: Shape, mode: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """The convolution alone."""
    x = _image(shape, batch, device, dtype)
    conv = _cast(_conv(shape, shape.in_channels), x, mode)

    def ours(module: nn.Module) -> Callable[[Tensor], Any]:
        return lambda x: ops.depthwise(x, module.weight, shape.stride, shape.kernel_size // 2).y

    return Case(shape.name, mode, conv, ours, x, _conv_bytes(shape, x, mode))


def pointwise(shape: Shape, mode: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """The 1x1 convolution alone."""
    x = _image(shape, batch, device, dtype)
    conv = _cast(_conv(shape, 1), x, mode)
    return Case(
        *(shape.name, mode, conv, lambda module: lambda x: ops.pointwise(x, module.weight).y),
        *(x, _conv_bytes(shape, x, mode)),
    )


class _ConvNormActPool(nn.Module):
    """Convolution, BatchNorm, SiLU, and the mean that squeeze-and-excite takes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(conv.out_channels)
        _randomize(self.bn)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = nn.functional.silu(self.bn(self.conv(x)))
        return y, y.mean((2, 3), dtype=torch.promote_types(y.dtype, torch.float32))

    def affine(self) -> tuple[Tensor, Tensor]:
        bn = self.bn
        scale = bn.weight.detach() * (bn.running_var + bn.eps).rsqrt()
        return scale, bn.bias.detach() - bn.running_mean * scale


def _randomize(bn: nn.BatchNorm2d) -> None:
    # A fresh BatchNorm is nearly the identity, which a kernel that forgets a factor would pass.
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias, std=0.2)
    bn.running_mean.normal_(std=0.2)
    bn.running_var.uniform_(0.5, 1.5)


def _fused(shape: Shape, mode: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    x = _image(shape, batch, device, dtype)
    stencil = shape.kernel_size > 1
    module = _cast(_ConvNormActPool(_conv(shape, shape.in_channels if stencil else 1)), x, mode)

    def ours(module: nn.Module) -> Callable[[Tensor], Any]:
        assert isinstance(module, _ConvNormActPool)
        options = {"affine": module.affine(), "act": "silu", "pool": True}
        weight, padding = module.conv.weight, shape.kernel_size // 2

        def call(x: Tensor) -> tuple[Tensor, Tensor | None]:
            if stencil:
                return ops.depthwise(x, weight, shape.stride, padding, **options)[:2]  # type: ignore[arg-type]
            return ops.pointwise(x, weight, **options)[:2]  # type: ignore[arg-type]

        return call

    return Case(shape.name, mode, module, ours, x, _conv_bytes(shape, x, mode), ("y", "pooled"))


def depthwise_fused(shape: Shape, mode: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """The depthwise convolution with BatchNorm, SiLU and pooling; inference."""
    return _fused(shape, mode, batch, device, dtype)


def pointwise_fused(shape: Shape, mode: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """The 1x1 convolution with BatchNorm, SiLU and pooling; inference."""
    return _fused(shape, mode, batch, device, dtype)


class _Gate(nn.Module):
    """The two layers of squeeze-and-excite, from the pooled vector on."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, squeeze), nn.Linear(squeeze, channels)

    def forward(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(pooled))))


def squeeze_excite(shape: Shape, mode: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """The gate, from the pooled vector; always fp32, as pooled vectors are."""
    x = torch.randn(batch, shape.in_channels, device=device)
    gate = _cast(_Gate(shape.in_channels, shape.out_channels), x, mode)

    def ours(module: nn.Module) -> Callable[[Tensor], Any]:
        first, second = module.fc1, module.fc2
        return lambda x: ops.squeeze_excite(x, first.weight, first.bias, second.weight, second.bias)

    parameters = sum(p.numel() for p in gate.parameters())
    times = 1 if mode == "infer" else 3
    return Case(shape.name, mode, gate, ours, x, 4 * times * (2 * x.numel() + parameters))


def mbconv(shape: Shape, mode: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """The whole block, as it stands in the model; the package's is the same module, patched."""
    b, x = shape.block, _image(shape, batch, device, dtype)
    module = MBConv(
        *(b.in_channels, b.out_channels),
        expand_ratio=b.channels / b.in_channels,
        kernel_size=b.kernel_size,
        stride=b.stride,
        squeeze_channels=b.squeeze,
    )
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            _randomize(part)
    module = _cast(module, x, mode)
    return Case(
        *(shape.name, mode, module, lambda stock: patch(copy.deepcopy(stock))),
        *(x, block_bytes(b, mode, batch, x.element_size())),
    )


def block_bytes(block: Block, mode: str, batch: int, element_size: int) -> float:
    """What the fused design moves for a block: a network of it alone less the same network without it."""
    alone = Network(block.model, 8, 8, 4, (block,), 8, 8, 4)
    totals = [
        roofline.bytes_per_image(list(designs.DESIGNS["fused", mode](n)), batch, element_size)
        for n in (alone, alone._replace(blocks=()))
    ]
    return batch * (totals[0] - totals[1])
