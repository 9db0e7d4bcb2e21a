"""Blocks of every library we patch, and the comparison of a patched block with its stock twin."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import effnet_fast

torchvision_efficientnet = pytest.importorskip("torchvision.models.efficientnet")


def shake_batch_norms(model: nn.Module) -> nn.Module:
    """Statistics and parameters as after some training: zeros and ones would hide mistakes."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return model


def torchvision_block(
    expand: float = 4, kernel: int = 5, stride: int = 1, cout: int = 8, p: float = 0.5
) -> nn.Module:
    config = torchvision_efficientnet.MBConvConfig(expand, kernel, stride, 8, cout, 1)
    return shake_batch_norms(torchvision_efficientnet.MBConv(config, p, nn.BatchNorm2d))


def mobilenet_v2_block(expand: int = 3, stride: int = 1, cout: int = 8) -> nn.Module:
    library = pytest.importorskip("torchvision.models.mobilenetv2")
    return shake_batch_norms(library.InvertedResidual(8, cout, stride, expand))


def mobilenet_v3_block(
    kernel: int = 5, expanded: int = 24, cout: int = 8, act: str = "HS", stride: int = 1
) -> nn.Module:
    """With squeeze-and-excite (ReLU, hard sigmoid) where the activation is hardswish."""
    library = pytest.importorskip("torchvision.models.mobilenetv3")
    config = library.InvertedResidualConfig(8, kernel, expanded, cout, act == "HS", act, stride, 1, 1.0)
    return shake_batch_norms(library.InvertedResidual(config, nn.BatchNorm2d))


def mnasnet_block(kernel: int = 5, stride: int = 1, cout: int = 8) -> nn.Module:
    library = pytest.importorskip("torchvision.models.mnasnet")
    return shake_batch_norms(library._InvertedResidual(8, cout, kernel, stride, 3))


def own_block() -> nn.Module:
    block = effnet_fast.nn.MBConv(
        8, 8, expand_ratio=4, kernel_size=3, stride=1, squeeze_channels=2, stochastic_depth_prob=0.3
    )
    return shake_batch_norms(block)


def lite_block(size: int | None, stride: int) -> nn.Module:
    """efficientnet_lite_pytorch: ReLU6, SAME padding fixed for an image size or dynamic."""
    library = pytest.importorskip("efficientnet_lite_pytorch.model")
    utils = pytest.importorskip("efficientnet_lite_pytorch.utils")
    blocks, settings = utils.efficientnet_lite(image_size=size)
    args = blocks[1]._replace(input_filters=8, output_filters=8, stride=stride, kernel_size=5, se_ratio=None)
    return shake_batch_norms(library.MBConvBlock(args, settings, image_size=size))


def swish_block() -> nn.Module:
    """efficientnet_pytorch: memory-efficient swish and squeeze-and-excite."""
    library = pytest.importorskip("efficientnet_pytorch.model")
    utils = pytest.importorskip("efficientnet_pytorch.utils")
    blocks, settings = utils.efficientnet(image_size=None)
    args = blocks[1]._replace(input_filters=8, output_filters=8, stride=1)
    return shake_batch_norms(library.MBConvBlock(args, settings))


def timm_block(kind: str, **options) -> nn.Module:
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    common = {"stride": 1, "act_layer": nn.SiLU, "drop_path_rate": 0.5, "se_layer": blocks.SqueezeExcite}
    block = getattr(blocks, kind)(8, 8, **(common | options))
    return shake_batch_norms(block)


def segmentation_block(stride: int) -> nn.Module:
    """segmentation_models_pytorch's copy of efficientnet_pytorch."""
    library = pytest.importorskip("segmentation_models_pytorch.encoders._efficientnet")
    blocks, settings = library.get_model_params("efficientnet-b0", {"image_size": 11})
    args = blocks[1]._replace(input_filters=8, output_filters=8, stride=stride, kernel_size=5)
    return shake_batch_norms(library.MBConvBlock(args, settings, image_size=11))


def geffnet_block(kind: str, **options) -> nn.Module:
    blocks = pytest.importorskip("geffnet.efficientnet_builder")
    common = {"act_layer": nn.SiLU, "se_ratio": 0.25, "drop_connect_rate": 0.4}
    return shake_batch_norms(getattr(blocks, kind)(8, 8, **(common | options)))


def transformers_block(stride: int = 1, kernel: int = 5) -> nn.Module:
    library = pytest.importorskip(
        "transformers.models.efficientnet.modeling_efficientnet", exc_type=ImportError
    )
    settings = library.EfficientNetConfig()
    options = {"kernel_size": kernel, "drop_rate": 0.0, "id_skip": stride == 2, "adjust_padding": kernel == 3}
    return shake_batch_norms(library.EfficientNetBlock(settings, 8, 8, stride, 3, **options))


def transformers_mobilenet_block(stride: int = 1, tf_padding: bool = True) -> nn.Module:
    library = pytest.importorskip(
        "transformers.models.mobilenet_v2.modeling_mobilenet_v2", exc_type=ImportError
    )
    settings = library.MobileNetV2Config(expand_ratio=3, tf_padding=tf_padding)
    return shake_batch_norms(library.MobileNetV2InvertedResidual(settings, 8, 8, stride))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": torchvision_block,
    "torchvision-no-expand": lambda: torchvision_block(expand=1, kernel=3),
    "torchvision-stride2": lambda: torchvision_block(stride=2, cout=12),
    "mobilenet_v2": mobilenet_v2_block,
    "mobilenet_v2-no-expand": lambda: mobilenet_v2_block(expand=1, stride=2, cout=12),
    "mobilenet_v3": mobilenet_v3_block,
    "mobilenet_v3-no-expand": lambda: mobilenet_v3_block(kernel=3, expanded=8, act="RE"),
    "mobilenet_v3-stride2": lambda: mobilenet_v3_block(cout=16, stride=2),
    "mnasnet": mnasnet_block,
    "mnasnet-stride2": lambda: mnasnet_block(kernel=3, stride=2, cout=12),
    "own": own_block,
    "lite-static": lambda: lite_block(11, 2),
    "lite-dynamic": lambda: lite_block(None, 2),
    "lite-residual": lambda: lite_block(None, 1),
    "efficientnet_pytorch": swish_block,
    "segmentation": lambda: segmentation_block(1),
    "segmentation-stride2": lambda: segmentation_block(2),
    "geffnet": lambda: geffnet_block("InvertedResidual", dw_kernel_size=5, exp_ratio=4.0),
    "geffnet-same": lambda: geffnet_block("InvertedResidual", stride=2, exp_ratio=4.0, pad_type="same"),
    "geffnet-separable": lambda: geffnet_block("DepthwiseSeparableConv"),
    "transformers": transformers_block,
    "transformers-stride2": lambda: transformers_block(2, 3),
    "transformers-mobilenet": transformers_mobilenet_block,
    "transformers-mobilenet-stride2": lambda: transformers_mobilenet_block(2, False),
    "timm": lambda: timm_block("InvertedResidual", dw_kernel_size=5, exp_ratio=4.0),
    "timm-same": lambda: timm_block("InvertedResidual", stride=2, exp_ratio=4.0, pad_type="same"),
    "timm-hardswish": lambda: timm_block(
        "InvertedResidual", exp_ratio=4.0, act_layer=nn.Hardswish, se_layer=None
    ),
    "timm-separable": lambda: timm_block("DepthwiseSeparableConv"),
}


def tolerance_of(name: str) -> float:
    """In fp64. PyTorch's hard sigmoid multiplies by 1/6 in single precision in its backward, even there."""
    hard = any(isinstance(m, nn.Hardsigmoid) for m in BLOCKS[name]().modules())
    return 1e-7 if hard else 1e-10


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    stock = BLOCKS[name]().to(dtype)
    return (
        stock,
        effnet_fast.patch(copy.deepcopy(stock), strict=False),
        torch.randn(3, 8, 11, 11, dtype=dtype),
    )


def assert_same(
    stock: nn.Module, patched: nn.Module, x: torch.Tensor, *args, tolerance: float = 1e-10
) -> None:
    """Outputs, every gradient, and buffers after the step."""
    close = {"rtol": tolerance, "atol": tolerance}
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(7)
    expected = stock(a, *args)
    torch.manual_seed(7)
    got = patched(b, *args)
    torch.testing.assert_close(got, expected, **close)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    got.backward(dy)
    torch.testing.assert_close(b.grad, a.grad, **close)
    for (name, p), q in zip(stock.named_parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, **close, msg=lambda m, name=name: f"{name}: {m}")
    for (name, p), q in zip(stock.named_buffers(), patched.buffers(), strict=True):
        torch.testing.assert_close(q, p, **close, msg=lambda m, name=name: f"{name}: {m}")
