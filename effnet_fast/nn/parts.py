"""What a block is made of, whatever library it comes from, and the checks that let it run fused.

An adapter (:mod:`effnet_fast.patching`) names the parts of one kind of block; everything after that is common.
A part that the kernels cannot stand in for raises :class:`UnsupportedBlockError`, and its message is the reason
the user reads in ``effnet_fast.report``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..types import Padding
from .exact import name_of

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
    #: Where the tensors lie (:class:`effnet_fast.nn.tensors.Slots`), filled in when the block is read.
    slots: Any = None
    #: The depthwise kernel for which a library pads, where it does not ask the weight; 0: it asks the weight.
    padded_kernel: int = 0

    @property
    def weight(self) -> Tensor:
        """A weight whose device and dtype are the block's."""
        return self.project.conv.weight


class ConvLayerParts(NamedTuple):
    """A convolution, BatchNorm and activation that stand outside the blocks: stem or head."""

    layer: ConvBN
    #: Keep the input instead of the convolution's output where that is smaller.
    recompute_expand: bool = False
    slots: Any = None

    @property
    def weight(self) -> Tensor:
        return self.layer.conv.weight


def layer_outside(layer: ConvBN, padding: Padding | str) -> ConvLayerParts:
    """A layer that pads as its convolution says; "same" has no kernel there.

    Raises:
        UnsupportedBlockError: it pads by "same".
    """
    if padding == "same":
        raise UnsupportedBlockError("a layer outside the blocks with SAME padding has no fused kernel")
    return ConvLayerParts(layer)


class NetworkParts(NamedTuple):
    """A network of MBConv blocks, in the order it runs; what comes after the head is for inference."""

    stem: ConvBN
    stem_padding: Padding | Literal["same"]
    blocks: list[nn.Module | MBConvParts]  # modules that adapters know, or their parts where they are none
    head: ConvBN | None  # 1x1; None: the blocks' features are the last
    pool: bool = True  # the mean over the image
    keep_dims: bool = False  # pooled features stay [N, C, 1, 1]
    classifier: tuple[nn.Module, ...] = ()  # on the pooled features, in order


def batch_statistics(bn: nn.BatchNorm2d) -> bool:
    """Whether this BatchNorm normalizes with the batch's own statistics (as ``nn.BatchNorm2d.forward`` decides)."""
    return bn.training or bn.running_mean is None


def layers_of(parts: MBConvParts | ConvLayerParts) -> list[ConvBN]:
    """The convolutions with their BatchNorms, in the order they run."""
    if isinstance(parts, ConvLayerParts):
        return [parts.layer]
    return [part for part in (parts.expand, parts.depthwise, parts.project) if part is not None]


def uses_batch_statistics(parts: MBConvParts | ConvLayerParts) -> bool:
    """:func:`batch_statistics` of any BatchNorm."""
    return any(batch_statistics(part.bn) for part in layers_of(parts))


@contextmanager
def about(name: str) -> Iterator[None]:
    """Lets the reason of an :class:`UnsupportedBlockError` begin with the name of the module it is about."""
    try:
        yield
    except UnsupportedBlockError as error:
        raise UnsupportedBlockError(f"{name}: {error}") from None


_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.ReLU6": "relu6",
    "torch.nn.modules.activation.Hardswish": "hardswish",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Hardsigmoid": "hardsigmoid",
    # x * sigmoid(x); the memory-efficient ones recompute it in their backward, as our kernels do.
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "geffnet.activations.activations.HardSwish": "hardswish",
    "geffnet.activations.activations_me.HardSwishMe": "hardswish",
    "transformers.activations.SiLUActivation": "silu",
    **{
        f"{library}.utils.{name}": "silu"
        for library in ("efficientnet_pytorch", "efficientnet_lite_pytorch")
        for name in ("Swish", "MemoryEfficientSwish")
    },
}
_GATES = ("sigmoid", "hardsigmoid")


def activation_name(module: nn.Module) -> str:
    """The name of an activation module's function."""
    name = _ACTIVATIONS.get(name_of(module))
    if name is None:
        raise UnsupportedBlockError(f"activation {type(module).__name__} has no fused kernel")
    if name == "relu6" and (module.min_val, module.max_val) != (0.0, 6.0):
        raise UnsupportedBlockError(f"activation {module} is not min(max(x, 0), 6)")
    return name


def conv_padding(conv: nn.Conv2d) -> Padding:
    """The four-sided padding of a plain ``nn.Conv2d``."""
    if isinstance(conv.padding, str):
        raise UnsupportedBlockError(f"padding={conv.padding!r} has no fused kernel")
    vertical, horizontal = _pair(conv.padding, "padding", 0)
    return horizontal, horizontal, vertical, vertical


def _pair(value: Any, name: str, least: int) -> tuple[int, int]:
    ok = isinstance(value, (tuple, list)) and len(value) == 2
    if not ok or any(type(v) is not int or v < least for v in value):
        raise UnsupportedBlockError(f"{name} {value!r} is not two integers from {least} on")
    return value[0], value[1]


def check_parts(parts: MBConvParts) -> None:
    """Refuse what the kernels do not compute; :mod:`.tensors` does the same for the tensors.

    Raises:
        UnsupportedBlockError: with the reason.
    """
    for name in ("expand", "depthwise", "project"):
        part = getattr(parts, name)
        if part is not None:
            check_conv_bn(name, part)
    stride = parts.depthwise.conv.stride
    if stride[0] != stride[1]:
        raise UnsupportedBlockError(f"depthwise strides {tuple(stride)} are two")
    for name in ("expand", "project"):
        part = getattr(parts, name)
        if part is not None:
            check_pointwise(f"the {name} convolution", part.conv)
    if parts.project.act != "none":
        raise UnsupportedBlockError("an activation after the projection has no fused kernel")
    if parts.squeeze_excite is not None:
        _check_squeeze_excite(parts.squeeze_excite)


def check_pointwise(name: str, conv: nn.Conv2d) -> None:
    """Refuse a 1x1 convolution that strides, pads or has groups; its kernel size is its weight's."""
    # 1x1 convolutions pad nothing by either word.
    padded = conv.padding not in ("same", "valid") and any(conv_padding(conv))
    if tuple(conv.stride) != (1, 1) or conv.groups != 1 or padded:
        raise UnsupportedBlockError(f"{name} is not a plain 1x1")


def children(module: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of an ``nn.Sequential`` or ``nn.ModuleList`` as they run; any other module, a subclass too, alone."""
    if type(module) not in (nn.Sequential, nn.ModuleList):
        return (module,)
    return tuple(child for child in module._modules.values() if child is not None)


def check_mean(pool: nn.Module) -> None:
    """Refuse a pooling that is not the mean over the whole image."""
    if type(pool) is not nn.AdaptiveAvgPool2d or pool.output_size not in (1, (1, 1), [1, 1]):
        raise UnsupportedBlockError(f"{pool} is not the mean over the image")


def check_plain_convs(*layers: nn.Module) -> None:
    """Refuse layers of squeeze-and-excite that are not ``nn.Conv2d`` itself."""
    for layer in layers:
        if type(layer) is not nn.Conv2d:
            raise UnsupportedBlockError(f"{type(layer).__name__} in squeeze-and-excite is not nn.Conv2d")


def check_rate(rate: object) -> None:
    """Refuse a rate of stochastic depth that is not a plain number."""
    if type(rate) not in (float, int) or not 0 <= rate <= 1:  # type: ignore[operator]
        raise UnsupportedBlockError(f"stochastic depth's rate {rate!r} is not a number from 0 to 1")


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
    *(f"torch.nn.modules.batchnorm.{name}" for name in ("BatchNorm2d", "SyncBatchNorm")),
    *(f"timm.layers.norm_act.{name}" for name in ("BatchNormAct2d", "SyncBatchNormAct")),
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
    _pair(conv.stride, f"the {name} convolution's stride", 1)
    _pair(conv.dilation, f"the {name} convolution's dilation", 1)
    if name_of(bn) not in _BATCH_NORMS:
        raise UnsupportedBlockError(f"{type(bn).__name__} after the {name} convolution is not nn.BatchNorm2d")
    if type(bn.eps) not in (float, int) or type(bn.momentum) not in (float, int, type(None)):
        raise UnsupportedBlockError(f"the {name} BatchNorm's eps or momentum is not a number")
    if bn.momentum is None and bn.track_running_stats and bn.num_batches_tracked is None:
        raise UnsupportedBlockError(f"the {name} BatchNorm averages over batches that it does not count")


def _check_squeeze_excite(se: SqueezeExcite) -> None:
    for layer in (se.fc1, se.fc2):
        if isinstance(layer, nn.Linear):
            continue
        check_pointwise("a convolution of squeeze-and-excite", layer)
        if tuple(layer.dilation) != (1, 1) or layer.padding_mode != "zeros":
            raise UnsupportedBlockError("a convolution of squeeze-and-excite is not a plain 1x1")
    if se.gate not in _GATES:
        raise UnsupportedBlockError(f"gate {se.gate} has no fused kernel")
