"""timm's ``InvertedResidual``, ``DepthwiseSeparableConv`` and ``ConvBnAct`` (EfficientNet, MobileNetV2/V3, MnasNet, FBNetV3)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..nn.exact import library_class, name_of
from ..nn.parts import (
    ConvBN,
    ConvLayerParts,
    MBConvParts,
    NetworkParts,
    Padding,
    SqueezeExcite,
    about,
    activation_name,
    check_mean,
    check_plain_convs,
    check_rate,
    children,
    conv_padding,
    layer_outside,
)
from ..ops.declare import constant_result

_CONV, _SAME = "torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame"
_POOLING = "timm.layers.adaptive_avgmax_pool"
_LAYER = "timm.models._efficientnet_blocks.ConvBnAct"
#: Of MobileNetV3, which convolves once more after the pooling; older versions have no ``norm_head``.
_AFTER_POOLING = ("conv_head", "norm_head", "act2", "flatten")


def parts(block: nn.Module) -> MBConvParts | ConvLayerParts:
    """The first has ``conv_pw`` (expand) and ``conv_pwl`` (project), the second projects by ``conv_pw``, the third is one layer."""
    kind = library_class(type(block))
    if name_of(block) == _LAYER:
        return _layer(block)
    if _reads(kind, "conv_s2d") and block.conv_s2d is not None:
        raise UnsupportedBlockError("space-to-depth has no fused kernel")
    _check_aliasing(block)
    expands = name_of(block) == "timm.models._efficientnet_blocks.InvertedResidual"
    depthwise_bn = block.bn2 if expands else block.bn1
    project = (block.conv_pwl, block.bn3) if expands else (block.conv_pw, block.bn2)
    return MBConvParts(
        _conv_bn(block.conv_dw, depthwise_bn),
        _conv_bn(*project),
        expand=_conv_bn(block.conv_pw, block.bn1) if expands else None,
        squeeze_excite=_squeeze_excite(block.se),
        residual=bool(block.has_skip),
        padding=_padding(block.conv_dw),
        row_scale=_drop_path(block.drop_path) if block.has_skip else None,
    )


def _layer(layer: nn.Module) -> ConvLayerParts:
    _check_aliasing(layer)
    if layer.has_skip:
        raise UnsupportedBlockError("a residual connection around one convolution has no fused kernel")
    return layer_outside(_conv_bn(layer.conv, layer.bn1), _padding(layer.conv))


def _check_aliasing(block: nn.Module) -> None:
    if _reads(library_class(type(block)), "aa") and type(block.aa) is not nn.Identity:
        raise UnsupportedBlockError(f"anti-aliasing by {type(block.aa).__name__} has no fused kernel")


@constant_result
def _reads(kind: type[nn.Module], attribute: str) -> bool:
    """Whether blocks of this version of timm have an attribute: older ones lack it, in newer ones it must be there."""
    return attribute in kind.forward.__code__.co_names


def network(model: nn.Module) -> NetworkParts:
    """``EfficientNet`` and ``MobileNetV3``, with or without head, pooling and classifier."""
    with about("conv_stem"):
        stem = _conv_bn(model.conv_stem, model.bn1)
    blocks = [block for stage in children(model.blocks) for block in children(stage)]
    head, end = _ending(model, blocks)
    with about("global_pool"):
        pool, keep_dims = _pooling(model.global_pool)
    return NetworkParts(
        stem,
        _padding(stem.conv),
        blocks,
        head,
        pool,
        keep_dims,
        (*end, *children(model.classifier)),
    )


def _ending(model: nn.Module, blocks: list[nn.Module]) -> tuple[ConvBN | None, tuple[nn.Module, ...]]:
    """The head before the pooling, and layers between pooling and classifier; takes the head off the blocks if it is one."""
    if name_of(model) == "timm.models.mobilenetv3.MobileNetV3":
        head = None
        if blocks and name_of(blocks[-1]) == _LAYER:
            with about("the last of its blocks"):
                head = _layer(blocks.pop()).layer
        names = type(model).forward_head.__code__.co_names
        return head, tuple(getattr(model, name) for name in _AFTER_POOLING if name in names)
    if type(model.conv_head) is nn.Identity:
        return None, ()
    with about("conv_head"):
        return _conv_bn(model.conv_head, model.bn2), ()


def _pooling(layer: nn.Module) -> tuple[bool, bool]:
    """Whether it takes the mean, and whether it keeps the image's dimensions."""
    if type(layer) is nn.Identity:
        return False, True
    refusal = UnsupportedBlockError(f"{layer} is not the mean over the image")
    if name_of(layer) != f"{_POOLING}.SelectAdaptivePool2d":
        raise refusal
    if name_of(layer.pool) == f"{_POOLING}.FastAdaptiveAvgPool" and type(layer.flatten) is nn.Identity:
        if tuple(layer.pool.dim) != (2, 3):
            raise refusal
        return True, not layer.pool.flatten
    flattens = type(layer.flatten) is nn.Flatten and (layer.flatten.start_dim, layer.flatten.end_dim) == (
        1,
        -1,
    )
    if not flattens and type(layer.flatten) is not nn.Identity:
        raise refusal
    if type(layer.pool) is nn.Identity:
        return False, not flattens
    check_mean(layer.pool)
    return True, not flattens


def _conv_bn(conv: nn.Module, bn: nn.Module) -> ConvBN:
    if name_of(conv) not in (_CONV, _SAME):
        raise UnsupportedBlockError(f"{type(conv).__name__} is not nn.Conv2d")
    if type(getattr(bn, "drop", None)) is not nn.Identity:
        raise UnsupportedBlockError(f"{type(bn).__name__} is not BatchNormAct2d without dropout")
    return ConvBN(conv, bn, _activation(bn))  # type: ignore[arg-type]


def _padding(conv: nn.Conv2d) -> Padding | str:
    return "same" if name_of(conv) == _SAME else conv_padding(conv)


def _squeeze_excite(se: nn.Module) -> SqueezeExcite | None:
    if type(se) is nn.Identity:
        return None
    if name_of(se) != "timm.models._efficientnet_blocks.SqueezeExcite":
        raise UnsupportedBlockError(f"{type(se).__name__} is not timm's SqueezeExcite")
    check_plain_convs(se.conv_reduce, se.conv_expand)
    return SqueezeExcite(se.conv_reduce, se.conv_expand, activation_name(se.act1), activation_name(se.gate))


def _drop_path(drop_path: nn.Module):  # type: ignore[no-untyped-def]
    if type(drop_path) is nn.Identity:
        return None
    if name_of(drop_path) != "timm.layers.drop.DropPath":
        raise UnsupportedBlockError(f"{type(drop_path).__name__} is not timm's DropPath")
    check_rate(drop_path.drop_prob)
    if not drop_path.training or drop_path.drop_prob == 0.0:
        return None
    keep, scale = 1 - drop_path.drop_prob, drop_path.scale_by_keep

    def draw(x: Tensor) -> Tensor:
        # The same calls as timm's drop_path, so that seeds match.
        noise = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
        if keep > 0.0 and scale:
            noise.div_(keep)
        return noise

    return draw


def _activation(bn: nn.Module) -> str:
    # torch's converter to SyncBatchNorm keeps BatchNormAct2d's activation as a child that nothing calls.
    return "none" if type(bn).__module__.startswith("torch.") else activation_name(bn.act)
