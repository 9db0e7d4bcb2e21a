"""MBConv and its parts as plain PyTorch modules.

MBConv is the inverted bottleneck of Sandler et al. 2018 (MobileNetV2) with squeeze-and-excitation (Hu et al.
2018), as EfficientNet uses it. Names, order and initialization of the submodules are those of torchvision's
``MBConv``, so that state dicts, optimizer states and seeds mean the same in both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.fx
from torch import Tensor, nn

from ..errors import EffnetFastError

#: Called with the number of channels.
NormLayer = Callable[[int], nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
}
GATES: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


def _lookup(table: dict[str, type[nn.Module]], op: str, argument: str, name: str) -> type[nn.Module]:
    if name not in table:
        raise EffnetFastError(f"{op}: {argument}: expected one of {', '.join(table)}, got {name!r}")
    return table[name]


class ConvNormAct(nn.Sequential):
    """Convolution without bias, normalization, activation; padded so that stride 1 keeps the size.

    Args:
        activation: a name in ``ACTIVATIONS``, or ``"none"``.

    Shape: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)] for an odd kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation: str = "silu",
    ) -> None:
        padding = (kernel_size - 1) // 2
        layers = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
            norm_layer(out_channels),
        ]
        if activation != "none":
            layers.append(_lookup(ACTIVATIONS, "ConvNormAct", "activation", activation)(inplace=True))
        super().__init__(*layers)
        self.out_channels = out_channels


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means.

    Args:
        activation: between the two small layers, a name in ``ACTIVATIONS``.
        gate: a name in ``GATES``.

    Shape: [N, in_channels, H, W] -> the same.
    """

    def __init__(
        self, in_channels: int, squeeze_channels: int, *, activation: str = "silu", gate: str = "sigmoid"
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(in_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, in_channels, 1)
        self.activation = _lookup(ACTIVATIONS, "SqueezeExcitation", "activation", activation)(inplace=True)
        self.scale_activation = _lookup(GATES, "SqueezeExcitation", "gate", gate)()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(gate) * x


def stochastic_depth(x: Tensor, p: float, training: bool) -> Tensor:
    """Zeroes whole samples of ``x`` [N, ...] with probability ``p`` and divides the others by ``1 - p``.

    Source: Huang et al. 2016. Random numbers are drawn as torchvision draws them, so that seeds agree.
    """
    if not training or p == 0.0:
        return x
    survival = 1.0 - p
    noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    noise = noise.bernoulli_(survival)
    if survival > 0.0:
        noise.div_(survival)
    return x * noise


# The branch on x.shape would stop torch.fx, on which torchvision's feature extraction relies.
torch.fx.wrap("stochastic_depth")


class StochasticDepth(nn.Module):
    """Module form of :func:`stochastic_depth`; active in training only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        check_probability("StochasticDepth", "p", p)
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        return stochastic_depth(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def check_probability(op: str, argument: str, value: float) -> None:
    """Raises EffnetFastError unless ``value`` is a number from 0 to 1."""
    if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise EffnetFastError(f"{op}: {argument}: expected a number from 0 to 1, got {value!r}")


class MBConv(nn.Module):
    """Expand (1x1), depthwise, squeeze-and-excitation, project (1x1), each with normalization; a residual
    connection with stochastic depth where input and output have the same shape.

    Args:
        expand_ratio: depthwise channels over ``in_channels``; 1 leaves the expansion out.
        kernel_size: of the depthwise convolution, odd.
        stride: of the depthwise convolution, 1 or 2.
        squeeze_channels: hidden channels of squeeze-and-excitation; 0 leaves it out.
        stochastic_depth_prob: probability that a sample skips the block in training.
        norm_layer: called with the number of channels.
        activation: name of the activation after expansion and depthwise, and inside squeeze-and-excitation.
        gate: name of squeeze-and-excitation's gate.

    Shape: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].

    Raises:
        EffnetFastError: an argument out of its range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expand_ratio: float,
        kernel_size: int,
        stride: int,
        squeeze_channels: int,
        stochastic_depth_prob: float = 0.0,
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation: str = "silu",
        gate: str = "sigmoid",
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise EffnetFastError(f"MBConv: stride: expected 1 or 2, got {stride!r}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise EffnetFastError(
                f"MBConv: kernel_size: expected an odd positive number, got {kernel_size!r}"
            )
        if squeeze_channels < 0:
            raise EffnetFastError(
                f"MBConv: squeeze_channels: expected a number >= 0, got {squeeze_channels!r}"
            )
        channels = round(in_channels * expand_ratio)
        layers: list[nn.Module] = []
        if channels != in_channels:
            layers.append(ConvNormAct(in_channels, channels, 1, norm_layer=norm_layer, activation=activation))
        layers.append(
            ConvNormAct(
                channels,
                channels,
                kernel_size,
                stride=stride,
                groups=channels,
                norm_layer=norm_layer,
                activation=activation,
            )
        )
        if squeeze_channels:
            layers.append(SqueezeExcitation(channels, squeeze_channels, activation=activation, gate=gate))
        layers.append(ConvNormAct(channels, out_channels, 1, norm_layer=norm_layer, activation="none"))

        self.use_res_connect = stride == 1 and in_channels == out_channels
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(stochastic_depth_prob)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.use_res_connect:
            y = self.stochastic_depth(y)
            y += x
        return y
