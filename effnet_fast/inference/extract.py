"""From a model to its folded :class:`Network`: modules are named by the adapters of :mod:`effnet_fast.patching`."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backend.network import Block, Conv, Network, SqueezeExcite
from ..errors import UnsupportedBlockError
from ..nn import tensors
from ..nn.exact import check_instance, class_problem, has_hooks, library_class, name_of
from ..nn.parts import (
    ConvBN,
    ConvLayerParts,
    MBConvParts,
    NetworkParts,
    about,
    check_conv_bn,
    check_parts,
    check_pointwise,
)
from ..nn.parts import SqueezeExcite as SqueezeExciteParts
from ..nn.tensors import check_plain
from ..patching import libraries
from ..patching.registry import read_parts

DTYPES = (torch.float32, torch.bfloat16)
LINEAR = ("torch.nn.modules.linear.Linear", "timm.layers.linear.Linear")
_DROPOUTS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Extracted(NamedTuple):
    """What :func:`extract` makes of a model."""

    #: Folded, with tensors of its own.
    network: Network
    #: Whether its pooled features keep the shape [N, C, 1, 1].
    keep_dims: bool
    #: The model's own layers after it, in the order they run; they stay as they are.
    tail: tuple[nn.Module, ...] = ()


def is_known(model: nn.Module) -> bool:
    """Whether an adapter knows this network, by its exact class: a subclass may compute something else."""
    return (type(model).__module__, type(model).__qualname__) in libraries.NETWORKS


def check_model(model: nn.Module) -> None:
    """Refuse what would be lost: training mode, hooks, parametrizations, weights that are not fp32 or bf16 on the CPU.

    Raises:
        UnsupportedBlockError: the module's name and the reason.
    """
    if torch.nn.modules.module._has_any_global_hook():
        raise UnsupportedBlockError("a global module hook is registered")
    for name, module in model.named_modules():
        with about(f"{name or 'the model'} ({type(module).__name__})"):
            _check_module(module)


def _check_module(module: nn.Module) -> None:
    # A slice of a Sequential is a new one, in training mode, which means nothing to it.
    if module.training and type(module) not in (nn.Sequential, nn.ModuleList):
        raise UnsupportedBlockError("it is in training mode; call model.eval() first")
    if has_hooks(module):
        raise UnsupportedBlockError("a hook is registered on it")
    check_instance("", module)
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is None:
            continue
        check_plain(tensor)
        if tensor.device.type != "cpu":
            raise UnsupportedBlockError(
                f"its weights are on {tensor.device}, optimize works on the CPU; "
                "elsewhere effnet_fast.patch(model) runs the blocks on fused kernels"
            )
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            raise UnsupportedBlockError(f"its weights are {tensor.dtype}, expected float32 or bfloat16")


def extract(model: nn.Module) -> Extracted:
    """The folded network and the layers that follow it.

    Args:
        model: one that :func:`is_known`, in evaluation mode.

    Raises:
        UnsupportedBlockError: a part that the network cannot represent; the message names the module.
    """
    module = libraries.NETWORKS[type(model).__module__, type(model).__qualname__]
    try:
        parts: NetworkParts = importlib.import_module(module).network(model)
        found = _fold_all(model, parts)
    except AttributeError as error:
        raise UnsupportedBlockError(f"something in it is missing: {error}") from None
    _check_classes(model, (*parts.blocks, *found.tail))
    return found


def _fold_all(model: nn.Module, parts: NetworkParts) -> Extracted:
    names = {module: name for name, module in model.named_modules()}
    with about(names[parts.stem.conv]):
        stem = _dense(parts.stem, parts.stem_padding)
    blocks = tuple(_block(block, names) for block in parts.blocks)
    head = None
    if parts.head is not None:
        with about(names[parts.head.conv]):
            head = _head(parts.head)
    elif parts.pool:
        # A network's pooling follows its head; this one multiplies by one, exactly.
        channels = blocks[-1].project.weight.shape[0] if blocks else stem.weight.shape[0]
        one = torch.eye(channels, dtype=torch.float32, device="cpu")[:, :, None, None].contiguous()
        head = Conv(one, one.new_zeros(channels))
    classifier, tail = _classifier(parts, names)
    return Extracted(
        Network(stem, blocks, head, classifier, parts.pool), parts.pool and parts.keep_dims, tail
    )


def _check_classes(model: nn.Module, apart: tuple[nn.Module | MBConvParts, ...]) -> None:
    """Everything but the blocks, which were checked as their parts were read, and what runs its own code anyway."""
    read = {module for part in apart if isinstance(part, nn.Module) for module in part.modules()}
    for name, module in model.named_modules():
        kind = library_class(type(module))
        problem = "" if module in read or kind is nn.ModuleList else class_problem(kind)
        if problem:
            raise UnsupportedBlockError(f"{name or 'the model'}: {problem}")


def fold(part: ConvBN, padding: object = (0, 0, 0, 0)) -> Conv:
    """A convolution with its BatchNorm's running statistics folded in, computed in fp64, kept in fp32."""
    conv, bn, act = part
    if bn.running_mean is None or bn.running_var is None:
        raise UnsupportedBlockError("its BatchNorm has no running statistics")
    mean, scale = bn.running_mean.double(), (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    bias = -mean * scale
    if bn.bias is not None:
        bias = bias + bn.bias.detach().double()
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    return Conv(
        weight.float().contiguous(),
        bias.float(),
        conv.stride[0],
        padding,  # type: ignore[arg-type]
        conv.groups,
        act,
    )


def _dense(part: ConvBN, padding: object) -> Conv:
    check_conv_bn("first", part)
    tensors.of_layer(ConvLayerParts(part))
    conv, kernel = part.conv, tuple(part.conv.weight.shape[2:])
    if conv.groups != 1 or len(set(kernel)) != 1 or len(set(conv.stride)) != 1:
        raise UnsupportedBlockError(
            f"groups {conv.groups}, kernel {kernel}, stride {tuple(conv.stride)}: "
            "expected one group, a square kernel, one stride"
        )
    return fold(part, padding)


def _head(part: ConvBN) -> Conv:
    check_conv_bn("head", part)
    tensors.of_layer(ConvLayerParts(part))
    check_pointwise("the head's convolution", part.conv)
    if part.conv.weight.shape[2:] != (1, 1):
        raise UnsupportedBlockError("the head's convolution is not a plain 1x1")
    return fold(part)


def _block(block: nn.Module | MBConvParts, names: dict[nn.Module, str]) -> Block:
    with about(names[block if isinstance(block, nn.Module) else block.depthwise.conv]):
        if isinstance(block, nn.Module):
            parts = read_parts(block)
        else:
            check_parts(block)
            parts = block
        if not isinstance(parts, MBConvParts):
            raise UnsupportedBlockError("it is not an MBConv block")
        tensors.of_block(parts)
        if parts.row_scale is not None and parts.residual:
            raise UnsupportedBlockError("stochastic depth is active")
        return Block(
            None if parts.expand is None else fold(parts.expand),
            fold(parts.depthwise, parts.padding),
            None if parts.squeeze_excite is None else _squeeze_excite(parts.squeeze_excite),
            fold(parts.project),
            parts.residual,
        )


def _squeeze_excite(parts: SqueezeExciteParts) -> SqueezeExcite:
    (w1, b1), (w2, b2) = _affine(parts.fc1), _affine(parts.fc2)
    return SqueezeExcite(w1, b1, w2, b2, parts.act, parts.gate)


def _affine(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    weight = _copy(layer.weight).flatten(1)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else _copy(layer.bias)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def _classifier(
    parts: NetworkParts, names: dict[nn.Module, str]
) -> tuple[tuple[Tensor, Tensor] | None, tuple[nn.Module, ...]]:
    """The linear layer on the pooled features, if one comes first, and the layers after it."""
    layers = tuple(layer for layer in parts.classifier if type(layer) not in _DROPOUTS)
    if not parts.pool and not parts.keep_dims:
        return None, (nn.Flatten(1), *layers)
    if not parts.pool or parts.keep_dims or not layers or name_of(layers[0]) not in LINEAR:
        return None, layers
    first: nn.Linear = layers[0]  # type: ignore[assignment]
    with about(names[first]):
        problem = class_problem(type(first))
        if problem:
            raise UnsupportedBlockError(problem)
        check_plain(first.weight)
        return _affine(first), layers[1:]
