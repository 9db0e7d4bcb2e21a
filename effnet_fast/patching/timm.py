"""timm's ``InvertedResidual`` and ``DepthwiseSeparableConv`` (EfficientNet, MobileNetV2/V3, MnasNet)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UnsupportedBlockError
from ..nn.parts import (
    ConvBN,
    MBConvParts,
    NetworkParts,
    Padding,
    SqueezeExcite,
    about,
    activation_name,
    children,
    conv_padding,
)


def parts(block: nn.Module) -> MBConvParts:
    """Either class: the first has ``conv_pw`` (expand) and ``conv_pwl`` (project), the second projects by ``conv_pw``."""
    if block.conv_s2d is not None:
        raise UnsupportedBlockError("space-to-depth has no fused kernel")
    if not isinstance(block.aa, nn.Identity):
        raise UnsupportedBlockError(f"anti-aliasing by {type(block.aa).__name__} has no fused kernel")
    expands = hasattr(block, "conv_pwl")
    depthwise_bn = block.bn2 if expands else block.bn1
    project = (block.conv_pwl, block.bn3) if expands else (block.conv_pw, block.bn2)
    return MBConvParts(
        _conv_bn(block.conv_dw, depthwise_bn),
        _conv_bn(*project),
        expand=_conv_bn(block.conv_pw, block.bn1) if expands else None,
        squeeze_excite=_squeeze_excite(block.se),
        residual=block.has_skip,
        padding=_padding(block.conv_dw),
        row_scale=_drop_path(block.drop_path) if block.has_skip else None,
    )


def network(model: nn.Module) -> NetworkParts:
    """``EfficientNet``, with or without head, pooling and classifier."""
    with about("conv_stem"):
        stem = _conv_bn(model.conv_stem, model.bn1)
    head = None
    if not isinstance(model.conv_head, nn.Identity):
        with about("conv_head"):
            head = _conv_bn(model.conv_head, model.bn2)
    with about("global_pool"):
        pool, keep_dims = _pooling(model.global_pool)
    return NetworkParts(
        stem,
        _padding(stem.conv),
        [block for stage in children(model.blocks) for block in children(stage)],
        head,
        pool,
        keep_dims,
        children(model.classifier),
    )


def _pooling(layer: nn.Module) -> tuple[bool, bool]:
    """Whether it takes the mean, and whether it keeps the image's dimensions."""
    if isinstance(layer, nn.Identity):
        return False, True
    kind = getattr(layer, "pool_type", None)
    if type(layer).__name__ != "SelectAdaptivePool2d" or kind not in ("", "avg", "fast", "fastavg"):
        raise UnsupportedBlockError(f"{layer} is not the mean over the image")
    if kind == "":
        return False, isinstance(layer.flatten, nn.Identity)
    if kind == "avg":
        return True, isinstance(layer.flatten, nn.Identity)
    return True, not layer.pool.flatten


def _conv_bn(conv: nn.Module, bn: nn.Module) -> ConvBN:
    if type(conv) is not nn.Conv2d and type(conv).__name__ != "Conv2dSame":
        raise UnsupportedBlockError(f"{type(conv).__name__} is not nn.Conv2d")
    if not isinstance(getattr(bn, "drop", None), nn.Identity):
        raise UnsupportedBlockError(f"{type(bn).__name__} is not BatchNormAct2d without dropout")
    return ConvBN(conv, bn, _activation(bn))  # type: ignore[arg-type]


def _padding(conv: nn.Conv2d) -> Padding | str:
    return "same" if type(conv).__name__ == "Conv2dSame" else conv_padding(conv)


def _squeeze_excite(se: nn.Module) -> SqueezeExcite | None:
    if isinstance(se, nn.Identity):
        return None
    if type(se).__name__ != "SqueezeExcite" or type(se.conv_reduce) is not nn.Conv2d:
        raise UnsupportedBlockError(f"{type(se).__name__} is not timm's SqueezeExcite")
    return SqueezeExcite(se.conv_reduce, se.conv_expand, activation_name(se.act1), activation_name(se.gate))


def _drop_path(drop_path: nn.Module):  # type: ignore[no-untyped-def]
    if isinstance(drop_path, nn.Identity):
        return None
    if type(drop_path).__name__ != "DropPath":
        raise UnsupportedBlockError(f"{type(drop_path).__name__} is not timm's DropPath")
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
