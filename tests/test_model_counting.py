"""Parameters and multiply-adds against published numbers, hand counts and the modules themselves."""

import json

import pytest
import torch
from torch import nn

from effnet_fast import models
from effnet_fast.errors import EffnetFastError
from effnet_fast.nn import MBConv


@pytest.mark.parametrize("name", models.list_models())
def test_parameters_and_multiply_adds_are_torchvisions(name):
    enum = getattr(pytest.importorskip("torchvision.models"), f"EfficientNet_{name.upper()}_Weights")
    published = enum.IMAGENET1K_V1
    count = models.count(name, published.transforms.keywords["crop_size"])
    assert count.parameters == published.meta["num_params"]
    assert round(count.multiply_adds / 1e9, 3) == published.meta["_ops"]


def test_papers_table():
    """Table 2 of the paper. It rounds its own counts; ours differ from three of them by up to 5 %."""
    parameters = {"b0": 5.3, "b1": 7.8, "b2": 9.1, "b3": 12, "b4": 19, "b5": 30, "b6": 43, "b7": 66}
    giga = {"b0": 0.39, "b1": 0.70, "b2": 1.0, "b3": 1.8, "b4": 4.2, "b5": 9.9, "b6": 19, "b7": 37}
    resolution = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}
    for summary in models.summarize_all():
        name = summary.name
        digits = 1 if parameters[name] < 10 else 0
        assert round(summary.parameters / 1e6, digits) == parameters[name]
        assert summary.multiply_adds / 1e9 == pytest.approx(giga[name], rel=0.05)
        assert summary.resolution == resolution[name]


@pytest.mark.parametrize(("name", "resolution"), [("b0", None), ("b3", 161)])
def test_stage_table_adds_up_and_matches_the_modules(name, resolution):
    summary = models.summarize(name, resolution, num_classes=12)
    model = models.create(name, num_classes=12).eval()
    assert sum(s.parameters for s in summary.stages) == summary.parameters
    assert sum(s.multiply_adds for s in summary.stages) == summary.multiply_adds
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    x = torch.randn(1, 3, summary.resolution, summary.resolution)
    assert [s.name for s in summary.stages] == [
        "stem",
        *(f"stage{i}" for i in range(1, 8)),
        "head",
        "classifier",
    ]
    with torch.inference_mode():
        for stage, module in zip(summary.stages, model.features, strict=False):
            assert (x.shape[1], x.shape[2]) == (stage.in_channels, stage.input_size)
            x = module(x)
            assert (x.shape[1], x.shape[2]) == (stage.out_channels, stage.output_size)
            if stage.name.startswith("stage"):
                assert len(module) == stage.repeats
                depthwise = next(m for m in module[0].modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
                assert depthwise.kernel_size[0] == stage.kernel_size
                assert depthwise.stride[0] == stage.stride
                assert depthwise.in_channels == stage.expand_ratio * stage.in_channels
    classifier = summary.stages[-1]
    assert (classifier.in_channels, classifier.out_channels) == (model.classifier[1].in_features, 12)


def test_count_by_hand():
    block = MBConv(8, 8, expand_ratio=2, kernel_size=5, stride=1, squeeze_channels=2)
    stem = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), block)
    stem.train()
    pixels = 6 * 6
    convolutions = pixels * (3 * 8 + 8 * 16 + 16 * 25 + 16 * 8) + 2 * 16 * 2
    assert models.count(stem, 6).multiply_adds == convolutions
    assert models.count(stem, 6).parameters == sum(p.numel() for p in stem.parameters())
    assert all(m.training for m in stem.modules()), "counting must not change the mode"
    assert not any(m._forward_hooks for m in stem.modules())
    with pytest.raises(EffnetFastError, match="resolution: expected a size for a module"):
        models.count(stem)


@pytest.mark.parametrize("resolution", [0, -1, 2.5, "224", True])
def test_count_refuses_resolutions(resolution):
    for function in (models.count, models.summarize):
        with pytest.raises(EffnetFastError, match="resolution: expected a positive integer, got"):
            function("b0", resolution)


def test_summary_is_plain_data():
    data = json.loads(json.dumps(models.summarize("b0").as_dict()))
    assert data["stages"][3]["kernel_size"] == 5 and data["parameters"] == 5288548
