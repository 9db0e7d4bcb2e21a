"""Every class, of torch and of the libraries, of which the kernels know exactly what it computes."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """What a call of a class runs besides ``forward``: methods, and functions that they look up in a module."""

    methods: tuple[str, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()


def _functional(*names: str) -> Known:
    return Known((), tuple(("torch.nn.functional", name) for name in names))


_CONV = Known(("_conv_forward",), (("torch.nn.functional", "conv2d"),))
_SAME_CONV = _functional("conv2d", "pad")
_BLOCK = _functional("adaptive_avg_pool2d")

#: How transformers' classes begin.
_EFFICIENTNET = "transformers.models.efficientnet.modeling_efficientnet.EfficientNet"
_MOBILENET = "transformers.models.mobilenet_v2.modeling_mobilenet_v2.MobileNetV2"

#: Every class of which the kernels know what it computes, by module and name.
KNOWN: dict[str, Known] = {
    "torch.nn.modules.container.Sequential": Known(("__iter__",)),
    "torch.nn.modules.conv.Conv2d": _CONV,
    "torch.nn.modules.linear.Linear": _functional("linear"),
    "torch.nn.modules.linear.Identity": Known(),
    "torch.nn.modules.batchnorm.BatchNorm2d": Known(
        ("_check_input_dim",), (("torch.nn.functional", "batch_norm"),)
    ),
    "torch.nn.modules.batchnorm.SyncBatchNorm": Known(
        ("_check_input_dim",), (("torch.nn.functional", "batch_norm"),)
    ),
    "torch.nn.modules.activation.SiLU": _functional("silu"),
    "torch.nn.modules.activation.ReLU": _functional("relu"),
    "torch.nn.modules.activation.ReLU6": _functional("hardtanh"),
    "torch.nn.modules.activation.Hardswish": _functional("hardswish"),
    "torch.nn.modules.activation.Sigmoid": Known((), (("torch", "sigmoid"),)),
    "torch.nn.modules.activation.Hardsigmoid": _functional("hardsigmoid"),
    "torch.nn.modules.pooling.AdaptiveAvgPool2d": _functional("adaptive_avg_pool2d"),
    "torch.nn.modules.padding.ZeroPad2d": _functional("pad"),
    "torch.nn.modules.flatten.Flatten": Known(),
    **{
        f"torch.nn.modules.dropout.{name}": Known()
        for name in ("Dropout", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout")
    },
    "torchvision.ops.misc.Conv2dNormActivation": Known(("__iter__",)),
    "torchvision.ops.misc.SqueezeExcitation": Known(("_scale",)),
    "torchvision.ops.stochastic_depth.StochasticDepth": Known(
        (), (("torchvision.ops.stochastic_depth", "stochastic_depth"),)
    ),
    "torchvision.models.efficientnet.MBConv": Known(),
    "torchvision.models.efficientnet.EfficientNet": Known(("_forward_impl",)),
    "torchvision.models.mobilenetv2.InvertedResidual": Known(),
    "torchvision.models.mobilenetv2.MobileNetV2": Known(
        ("_forward_impl",), (("torch.nn.functional", "adaptive_avg_pool2d"),)
    ),
    "torchvision.models.mobilenetv3.InvertedResidual": Known(),
    "torchvision.models.mobilenetv3.MobileNetV3": Known(("_forward_impl",)),
    "torchvision.models.mnasnet._InvertedResidual": Known(),
    "torchvision.models.mnasnet.MNASNet": Known(),
    "effnet_fast.nn.mbconv.ConvNormAct": Known(("__iter__",)),
    "effnet_fast.nn.mbconv.SqueezeExcitation": Known(),
    "effnet_fast.nn.mbconv.StochasticDepth": Known((), (("effnet_fast.nn.mbconv", "stochastic_depth"),)),
    "effnet_fast.nn.mbconv.MBConv": Known(),
    "effnet_fast.models.efficientnet.EfficientNet": Known(),
    "timm.models._efficientnet_blocks.InvertedResidual": Known(),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": Known(),
    "timm.models._efficientnet_blocks.SqueezeExcite": Known(),
    "timm.models._efficientnet_blocks.ConvBnAct": Known(),
    "timm.models.efficientnet.EfficientNet": Known(("forward_features", "forward_head")),
    "timm.models.mobilenetv3.MobileNetV3": Known(("forward_features", "forward_head")),
    "timm.layers.linear.Linear": _functional("linear"),
    "timm.layers.norm_act.BatchNormAct2d": _functional("batch_norm"),
    "timm.layers.norm_act.SyncBatchNormAct": _functional("batch_norm"),
    "timm.layers.conv2d_same.Conv2dSame": Known((), (("timm.layers.conv2d_same", "conv2d_same"),)),
    "timm.layers.drop.DropPath": Known((), (("timm.layers.drop", "drop_path"),)),
    "timm.layers.activations.Swish": Known((), (("timm.layers.activations", "swish"),)),
    "timm.layers.activations.Sigmoid": Known(),
    "timm.layers.adaptive_avgmax_pool.SelectAdaptivePool2d": Known(),
    "timm.layers.adaptive_avgmax_pool.FastAdaptiveAvgPool": Known(),
    **{
        f"geffnet.efficientnet_builder.{name}": Known((), (("geffnet.efficientnet_builder", "drop_connect"),))
        for name in ("InvertedResidual", "DepthwiseSeparableConv")
    },
    "geffnet.efficientnet_builder.ConvBnAct": Known(),
    "geffnet.efficientnet_builder.SqueezeExcite": Known(),
    "geffnet.conv2d_layers.Conv2dSame": Known((), (("geffnet.conv2d_layers", "conv2d_same"),)),
    "geffnet.activations.activations.HardSwish": Known(
        (), (("geffnet.activations.activations", "hard_swish"),)
    ),
    "geffnet.activations.activations_me.HardSwishMe": Known(),
    "geffnet.gen_efficientnet.GenEfficientNet": Known(("features",)),
    "geffnet.mobilenetv3.MobileNetV3": Known(("features",)),
    "transformers.activations.SiLUActivation": _functional("silu"),
    **{
        f"{_EFFICIENTNET}{name}": Known()
        for name in ("Block", "ExpansionLayer", "DepthwiseLayer", "FinalBlockLayer")
    },
    f"{_EFFICIENTNET}SqueezeExciteLayer": Known((), (("torch", "mul"),)),
    f"{_EFFICIENTNET}DepthwiseConv2d": _CONV,
    f"{_MOBILENET}InvertedResidual": Known(),
    f"{_MOBILENET}ConvLayer": Known(
        (), (("transformers.models.mobilenet_v2.modeling_mobilenet_v2", "apply_tf_padding"),)
    ),
}
#: Where efficientnet_pytorch and its relatives keep their blocks and their layers.
_RELATIVES = (
    *((f"{name}.model", f"{name}.utils") for name in ("efficientnet_pytorch", "efficientnet_lite_pytorch")),
    ("segmentation_models_pytorch.encoders._efficientnet",) * 2,
)
for _blocks, _layers in _RELATIVES:
    KNOWN |= {
        f"{_layers}.Conv2dStaticSamePadding": _SAME_CONV,
        f"{_layers}.Conv2dDynamicSamePadding": _SAME_CONV,
        f"{_layers}.Identity": Known(),
        f"{_layers}.Swish": Known(),
        f"{_layers}.MemoryEfficientSwish": Known(),
        f"{_blocks}.MBConvBlock": _BLOCK._replace(functions=(*_BLOCK.functions, (_blocks, "drop_connect"))),
        f"{_blocks}.EfficientNet": Known(("extract_features",)),
    }
