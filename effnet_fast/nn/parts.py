"""What a block is made of, whatever library it comes from, and the checks that let it run fused.

An adapter (:mod:`effnet_fast.patching`) names the parts of one kind of block; everything after that is common.
A part that the kernels cannot stand in for raises :class:`UnsupportedBlockError`, and its message is the reason
the user reads in ``effnet_fast.report``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ShardedWeightError, UnsupportedBlockError
from ..types import Padding

#: Draws stochastic depth's per-sample factor for the block's output: output-like tensor -> [N, 1, 1, 1].
RowScale = Callable[[Tensor], Tensor]


class ConvBN(NamedTuple):
    """A convolution without bias, its BatchNorm and the name of the activation after it."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    act: str = "none"


class SqueezeExcite(NamedTuple):
    """The two fully connected layers (1x1 convolutions or linear layers) and their activations' names."""

    fc1: nn.Conv2d | nn.Linear
    fc2: nn.Conv2d | nn.Linear
    act: str = "silu"
    gate: str = "sigmoid"


class MBConvParts(NamedTuple):
    """An MBConv block: expand (optional), depthwise, squeeze-and-excite (optional), project."""

    depthwise: ConvBN
    project: ConvBN
    expand: ConvBN | None = None
    squeeze_excite: SqueezeExcite | None = None
    residual: bool = False
    #: "same" is TensorFlow's: as much as the input's size asks for, the odd pixel at the right and bottom.
    padding: Padding | Literal["same"] = (0, 0, 0, 0)
    #: Stochastic depth on the residual branch, or ``None``.
    row_scale: RowScale | None = None
    #: Keep the input instead of the expansion's output for the backward, which expands again.
    recompute_expand: bool = False

    @property
    def weight(self) -> Tensor:
        """A weight whose device and dtype are the block's."""
        return self.project.conv.weight


class ConvLayerParts(NamedTuple):
    """A convolution, BatchNorm and activation that stand outside the blocks: stem or head."""

    layer: ConvBN
    #: Keep the input instead of the convolution's output where that is smaller.
    recompute_expand: bool = False

    @property
    def weight(self) -> Tensor:
        return self.layer.conv.weight


class NetworkParts(NamedTuple):
    """An EfficientNet-like network, in the order it runs; what comes after the head is for inference."""

    stem: ConvBN
    stem_padding: Padding | Literal["same"]
    blocks: list[nn.Module]  # each known to an adapter of its own
    head: ConvBN | None  # 1x1; None: the blocks' features are the last
    pool: bool = True  # the mean over the image
    keep_dims: bool = False  # pooled features stay [N, C, 1, 1]
    classifier: tuple[nn.Module, ...] = ()  # on the pooled features, in order


@contextmanager
def about(name: str) -> Iterator[None]:
    """Lets the reason of an :class:`UnsupportedBlockError` begin with the name of the module it is about."""
    try:
        yield
    except UnsupportedBlockError as error:
        raise UnsupportedBlockError(f"{name}: {error}") from None


_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
}
_GATES = ("sigmoid", "hardsigmoid")


def activation_name(module: nn.Module) -> str:
    """The name of an activation module's function."""
    name = _ACTIVATIONS.get(type(module))
    if name is None:
        raise UnsupportedBlockError(f"activation {type(module).__name__} has no fused kernel")
    return name


def conv_padding(conv: nn.Conv2d) -> Padding:
    """The four-sided padding of a plain ``nn.Conv2d``."""
    if isinstance(conv.padding, str):
        raise UnsupportedBlockError(f"padding={conv.padding!r} has no fused kernel")
    vertical, horizontal = conv.padding
    return horizontal, horizontal, vertical, vertical


def same_padding(height: int, width: int, kernel: int, stride: int) -> Padding:
    """TensorFlow's "SAME" for an input of this size."""

    def split(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    return (*split(width), *split(height))


def check_parts(parts: MBConvParts) -> None:
    """Refuse what the kernels do not compute.

    Raises:
        UnsupportedBlockError: with the reason.
    """
    for name in ("expand", "depthwise", "project"):
        part = getattr(parts, name)
        if part is not None:
            check_conv_bn(name, part)
    conv = parts.depthwise.conv
    kernel, stride = conv.kernel_size, conv.stride
    if conv.groups != conv.in_channels or conv.out_channels != conv.in_channels:
        raise UnsupportedBlockError("the depthwise convolution has a channel multiplier or wider groups")
    if kernel[0] != kernel[1] or kernel[0] not in (3, 5, 7):
        raise UnsupportedBlockError(f"depthwise kernel {tuple(kernel)} is not 3x3, 5x5 or 7x7")
    if stride[0] != stride[1] or stride[0] not in (1, 2):
        raise UnsupportedBlockError(f"depthwise stride {tuple(stride)} is not 1 or 2")
    for name in ("expand", "project"):
        part = getattr(parts, name)
        if part is None:
            continue
        if (
            tuple(part.conv.kernel_size) != (1, 1)
            or tuple(part.conv.stride) != (1, 1)
            or part.conv.groups != 1
        ):
            raise UnsupportedBlockError(f"the {name} convolution is not a plain 1x1")
    if parts.project.act != "none":
        raise UnsupportedBlockError("an activation after the projection has no fused kernel")
    if parts.squeeze_excite is not None:
        _check_squeeze_excite(parts.squeeze_excite)


def children(module: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of an ``nn.Sequential`` or ``nn.ModuleList`` in their order; any other module alone."""
    if type(module) not in (nn.Sequential, nn.ModuleList):
        return (module,)
    return tuple(module.children())


def check_mean(pool: nn.Module) -> None:
    """Refuse a pooling that is not the mean over the whole image."""
    if type(pool) is not nn.AdaptiveAvgPool2d or pool.output_size not in (1, (1, 1), [1, 1]):
        raise UnsupportedBlockError(f"{pool} is not the mean over the image")


def check_layer(parts: ConvLayerParts) -> None:
    """:func:`check_parts` for a layer outside the blocks."""
    conv, bn, _ = parts.layer
    if isinstance(bn, nn.SyncBatchNorm):
        raise UnsupportedBlockError("SyncBatchNorm outside the blocks has no fused kernel")
    check_conv_bn("layer's", parts.layer)
    conv_padding(conv)
    if conv.groups != 1:
        raise UnsupportedBlockError("the layer's convolution has groups")


#: Normalizations that compute nn.BatchNorm2d and nothing the adapter has not told (timm's carries its activation).
_BATCH_NORMS = {
    *(("torch.nn.modules.batchnorm", name) for name in ("BatchNorm2d", "SyncBatchNorm")),
    *(("timm.layers.norm_act", name) for name in ("BatchNormAct2d", "SyncBatchNormAct")),
}


def check_conv_bn(name: str, part: ConvBN) -> None:
    """Refuse a convolution or a normalization that is not PyTorch's plain one.

    Raises:
        UnsupportedBlockError: with the reason, in which the convolution is called ``name``.
    """
    conv, bn, _ = part
    if conv.bias is not None:
        raise UnsupportedBlockError(f"the {name} convolution has a bias")
    if tuple(conv.dilation) != (1, 1) or conv.padding_mode != "zeros":
        raise UnsupportedBlockError(
            f"the {name} convolution is dilated or pads with something else than zeros"
        )
    if (type(bn).__module__, type(bn).__qualname__) not in _BATCH_NORMS:
        raise UnsupportedBlockError(f"{type(bn).__name__} after the {name} convolution is not nn.BatchNorm2d")
    check_plain(conv.weight, conv)


def _check_squeeze_excite(se: SqueezeExcite) -> None:
    for layer in (se.fc1, se.fc2):
        if isinstance(layer, nn.Conv2d) and (tuple(layer.kernel_size) != (1, 1) or layer.groups != 1):
            raise UnsupportedBlockError("squeeze-and-excite's convolutions are not plain 1x1")
        check_plain(layer.weight, layer)
    if se.gate not in _GATES:
        raise UnsupportedBlockError(f"gate {se.gate} has no fused kernel")


def check_plain(weight: Tensor, module: nn.Module | None = None) -> None:
    """Tensor subclasses (quantized, distributed, fake) mean something the kernels do not know."""
    if type(weight) not in (nn.Parameter, Tensor):
        if getattr(module, "_is_fsdp_managed_module", False):
            raise ShardedWeightError(
                "its weights are sharded; it decides in its forward, where they are whole"
            )
        raise UnsupportedBlockError(f"a weight is a {type(weight).__name__}, not a plain tensor")


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` would run a hook, which a fused block would skip."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def check_inside(block: nn.Module) -> None:
    """Hooks and parametrizations inside the block must be seen by PyTorch itself.

    Raises:
        UnsupportedBlockError: with the reason.
    """
    # By hand because this runs at every forward and nn.Module.modules() costs five times as much.
    inside = list(block._modules.values())
    while inside:
        module = inside.pop()
        if module is None:
            continue
        if has_hooks(module):
            raise UnsupportedBlockError(f"a hook is registered on its {type(module).__name__}")
        children = module._modules
        if children:
            if "parametrizations" in children:
                raise UnsupportedBlockError(f"its {type(module).__name__} is parametrized")
            inside += children.values()
    if torch.nn.modules.module._has_any_global_hook():
        raise UnsupportedBlockError("a global module hook is registered")
