"""The classes of other libraries that are known, named so that nothing has to be imported, and the adapters that read them."""

from __future__ import annotations

#: Module and class, in the module's name and the class's.
Class = tuple[str, str]


def _of(adapter: str, *classes: str) -> dict[Class, str]:
    """``classes`` (module.Class) -> the adapter's module."""
    names = (name.rpartition(".") for name in classes)
    return {(module, name): f"effnet_fast.patching.{adapter}" for module, _, name in names}


#: Blocks; an adapter's ``parts`` reads them.
BLOCKS: dict[Class, str] = {
    **_of(
        "torchvision",
        "effnet_fast.nn.mbconv.MBConv",
        "torchvision.models.efficientnet.MBConv",
        "torchvision.models.mobilenetv2.InvertedResidual",
        "torchvision.models.mobilenetv3.InvertedResidual",
        "torchvision.models.mnasnet._InvertedResidual",
    ),
    **_of(
        "efficientnet_pytorch",
        "efficientnet_pytorch.model.MBConvBlock",
        "efficientnet_lite_pytorch.model.MBConvBlock",
        "segmentation_models_pytorch.encoders._efficientnet.MBConvBlock",
    ),
    **_of(
        "timm",
        "timm.models._efficientnet_blocks.InvertedResidual",
        "timm.models._efficientnet_blocks.DepthwiseSeparableConv",
    ),
    **_of(
        "geffnet",
        "geffnet.efficientnet_builder.InvertedResidual",
        "geffnet.efficientnet_builder.DepthwiseSeparableConv",
    ),
    **_of(
        "transformers",
        "transformers.models.efficientnet.modeling_efficientnet.EfficientNetBlock",
        "transformers.models.mobilenet_v2.modeling_mobilenet_v2.MobileNetV2InvertedResidual",
    ),
}

#: Convolution, normalization and activation in one module, patched where they stand outside the blocks; likewise.
LAYERS: dict[Class, str] = {
    **_of("layers", "effnet_fast.nn.mbconv.ConvNormAct", "torchvision.ops.misc.Conv2dNormActivation"),
    **_of("timm", "timm.models._efficientnet_blocks.ConvBnAct"),
    **_of("geffnet", "geffnet.efficientnet_builder.ConvBnAct"),
    **_of("transformers", "transformers.models.mobilenet_v2.modeling_mobilenet_v2.MobileNetV2ConvLayer"),
}

#: Networks that ``optimize`` takes whole; an adapter's ``network`` reads them.
NETWORKS: dict[Class, str] = {
    **_of(
        "torchvision",
        "effnet_fast.models.efficientnet.EfficientNet",
        "torchvision.models.efficientnet.EfficientNet",
        "torchvision.models.mobilenetv2.MobileNetV2",
        "torchvision.models.mobilenetv3.MobileNetV3",
        "torchvision.models.mnasnet.MNASNet",
    ),
    **_of("timm", "timm.models.efficientnet.EfficientNet", "timm.models.mobilenetv3.MobileNetV3"),
    **_of(
        "efficientnet_pytorch",
        "efficientnet_pytorch.model.EfficientNet",
        "efficientnet_lite_pytorch.model.EfficientNet",
    ),
    **_of("geffnet", "geffnet.gen_efficientnet.GenEfficientNet", "geffnet.mobilenetv3.MobileNetV3"),
}

#: As messages name them.
NAMES = (
    "effnet_fast, torchvision, timm, efficientnet_pytorch, efficientnet_lite_pytorch, geffnet, transformers, "
    "segmentation_models_pytorch"
)
