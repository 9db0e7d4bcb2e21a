"""Whole networks of every library at sizes of milliseconds, as after some training."""

from collections.abc import Callable

import pytest
import torch
from patched_blocks import shake_batch_norms
from torch import nn

import effnet_fast
from effnet_fast.models.config import Stage


def own() -> nn.Module:
    stages = (Stage(1, 3, 1, 8, 8, 1), Stage(3, 5, 2, 8, 12, 2))
    return effnet_fast.models.EfficientNet(stages, dropout=0.1, stochastic_depth_prob=0.3, num_classes=5)


def torchvision() -> nn.Module:
    library = pytest.importorskip("torchvision.models.efficientnet")
    config = library.MBConvConfig
    blocks = [config(1, 3, 1, 8, 8, 1), config(3, 5, 2, 8, 12, 2)]
    return library.EfficientNet(blocks, 0.1, stochastic_depth_prob=0.3, num_classes=5, last_channel=32)


def mobilenet_v2() -> nn.Module:
    library = pytest.importorskip("torchvision.models.mobilenetv2")
    blocks = [[1, 8, 1, 1], [3, 12, 2, 2]]
    return library.MobileNetV2(
        5, width_mult=0.25, inverted_residual_setting=blocks, round_nearest=4, dropout=0.1
    )


def mobilenet_v3() -> nn.Module:
    library = pytest.importorskip("torchvision.models.mobilenetv3")
    blocks = [
        library.InvertedResidualConfig(8, kernel, expanded, 8, act == "HS", act, stride, 1, 1.0)
        for kernel, expanded, act, stride in [(3, 8, "RE", 1), (5, 24, "HS", 2), (3, 24, "RE", 1)]
    ]
    return library.MobileNetV3(blocks, 16, num_classes=5, dropout=0.1)


def _timm(arch: list[list[str]], **options: object) -> nn.Module:
    models = pytest.importorskip("timm.models.efficientnet")
    builder = pytest.importorskip("timm.models._efficientnet_builder")
    common = {"num_classes": 5, "num_features": 32, "stem_size": 8, "drop_rate": 0.1, "drop_path_rate": 0.3}
    common["round_chs_fn"] = lambda channels: int(channels)
    return models.EfficientNet(builder.decode_arch_def(arch), **(common | options))


def timm() -> nn.Module:
    return _timm([["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k5_s2_e3_c12_se0.25"]], act_layer=nn.SiLU)


def timm_lite() -> nn.Module:
    return _timm(
        [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k5_s2_e3_c12"]], act_layer=nn.ReLU6, pad_type="same", fix_stem=True
    )


def _same(package: str, **options: object) -> nn.Module:
    model = pytest.importorskip(f"{package}.model")
    utils = pytest.importorskip(f"{package}.utils")
    blocks = utils.BlockDecoder.decode(["r1_k3_s11_e1_i32_o32_se0.25", "r2_k5_s22_e3_i32_o48_se0.25"])
    values = dict.fromkeys(utils.GlobalParams._fields)
    values |= {"width_coefficient": 0.25, "depth_coefficient": 1.0, "dropout_rate": 0.1, "num_classes": 5}
    values |= {"batch_norm_momentum": 0.9, "batch_norm_epsilon": 1e-3, "drop_connect_rate": 0.3}
    values |= {"depth_divisor": 4, "min_depth": 4}
    known = {key: value for key, value in options.items() if key in values}
    settings = utils.GlobalParams(**(values | known))
    return model.EfficientNet(blocks, settings)


def efficientnet_pytorch() -> nn.Module:
    return _same("efficientnet_pytorch", image_size=None, include_top=True)


def efficientnet_lite_pytorch() -> nn.Module:
    return _same(
        "efficientnet_lite_pytorch",
        image_size=None,
        relu_fn=None,
        fix_head_stem=False,
        use_se=False,
        local_pooling=False,
    )


TINY: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f
    for f in (
        *(own, torchvision, mobilenet_v2, mobilenet_v3, timm, timm_lite),
        *(efficientnet_pytorch, efficientnet_lite_pytorch),
    )
}


def make(name: str) -> nn.Module:
    torch.manual_seed(3)
    return shake_batch_norms(TINY[name]())
