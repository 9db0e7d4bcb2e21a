"""What users do with the models, and what they get wrong."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from effnet_fast import models, unpatch
from effnet_fast.errors import EffnetFastError, UnknownModelError

ALL = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"]


def test_list_and_create():
    assert models.list_models() == ALL
    for name in ("b1", "B1", "efficientnet_b1", "EfficientNet-B1", " b1 "):
        with torch.device("meta"):
            model = models.create(name, num_classes=5, dropout=0.35)
        assert sum(len(stage) for stage in model.features[1:-1]) == 23
        assert model.classifier[0].p == 0.35 and model.classifier[1].out_features == 5
    models.list_models().clear()
    assert models.list_models() == ALL, "the list is the caller's own"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("b8", ""), ("b", ""), ("b10", ""), ("efficientnet_b33", "did you mean 'b3'[?] "), ("resnet50", "")],
)
def test_unknown_model_suggests(name, hint):
    with pytest.raises(UnknownModelError, match=rf"unknown model '{name}'; {hint}known: b0, b1") as raised:
        models.create(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["", "resnet50", None, 3])
def test_unknown_model(name):
    with pytest.raises(UnknownModelError, match=r"^create: "):
        models.create(name)
    with pytest.raises(UnknownModelError):
        models.summarize(name)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dropout": 1.5},
        {"dropout": "0.1"},
        {"stochastic_depth_prob": -0.1},
        {"num_classes": 0},
        {"num_classes": 2.5},
    ],
)
def test_bad_arguments(kwargs):
    (argument,) = kwargs
    with pytest.raises(EffnetFastError, match=rf"EfficientNet: {argument}: expected .*, got"):
        models.b0(**kwargs)
    with pytest.raises(TypeError, match="depth_multiplier"):
        models.b0(depth_multiplier=2)
    with pytest.raises(TypeError, match="positional"):
        models.b0(None)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, 32, 32), r"x: expected 3 channels, got shape \[2, 4, 32, 32\]"),
        (torch.zeros(3, 32, 32), r"x: expected \[N, C, H, W\], got shape \[3, 32, 32\]"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            r"x: expected floating point, normalized images, got torch\.uint8",
        ),
    ],
)
def test_bad_images(x, message):
    with torch.device("meta"):
        model = models.b0()
    with pytest.raises(EffnetFastError, match=message):
        model(x)


def test_any_member_of_the_family():
    scaling = models.compound_scaling(1)
    torch.manual_seed(0)
    model = models.efficientnet(width_mult=scaling.width, depth_mult=scaling.depth, num_classes=4)
    assert [len(stage) for stage in model.features[1:-1]] == [2, 3, 3, 4, 4, 5, 2]
    assert model.eval()(torch.randn(1, 3, 40, 40)).shape == (1, 4)
    torch.manual_seed(9)
    named = models.b2(num_classes=4)
    torch.manual_seed(9)
    scaled = models.efficientnet(width_mult=1.1, depth_mult=1.2, dropout=0.3, num_classes=4)
    torch.testing.assert_close(scaled.state_dict(), named.state_dict(), rtol=0, atol=0)
    small = models.efficientnet(width_mult=0.25, depth_mult=0.1, num_classes=2)
    assert [len(stage) for stage in small.features[1:-1]] == [1] * 7


def test_replaced_stem():
    gray = models.b0(num_classes=2).eval()
    gray.features[0][0] = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
    assert gray(torch.randn(1, 1, 32, 32)).shape == (1, 2)
    with pytest.raises(EffnetFastError, match="x: expected 1 channels"):
        gray(torch.randn(1, 3, 32, 32))
    gray.features[0] = nn.AvgPool2d(2)
    gray.features[1] = nn.Conv2d(3, 16, 1)
    assert gray(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def test_replaced_classifier():
    model = models.b0()
    model.classifier[1] = nn.Linear(model.classifier[1].in_features, 3)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.classifier[1].weight.grad.shape == (3, 1280)


def test_copies_are_equal_and_independent():
    model = models.b0(num_classes=4).eval()
    x = torch.randn(1, 3, 33, 33)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    with torch.inference_mode():
        expected = model(x)
        for twin in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(twin(x), expected)
            assert repr(twin) == repr(model)
            twin.classifier[1].bias.add_(1)
        assert torch.equal(model(x), expected)


def test_meta_construction_then_values():
    with torch.device("meta"):
        model = models.b0(num_classes=3)
    assert all(t.is_meta for t in model.state_dict().values())
    source = models.b0(num_classes=3).eval()
    model.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.eval()(x), source(x))


@pytest.mark.parametrize("train", [False, True])
def test_compiles_without_graph_breaks(train):
    model = models.b0(num_classes=4).train(train)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 40, 40)
    torch.manual_seed(2)
    expected = model(x)
    torch.manual_seed(2)
    # Statistics of 8 values, by a decomposition where torch traces them.
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


def test_traces_for_feature_extraction():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = models.b0(num_classes=4).eval()
    x = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extractor = extraction.create_feature_extractor(
            model, {"features.3": "middle", "classifier": "logits"}
        )
    with torch.inference_mode():
        found = extractor(x)
        assert found["middle"].shape == (1, 40, 8, 8)
        # A traced program holds the stock blocks.
        assert torch.equal(found["logits"], unpatch(model)(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripts_traces_and_exports(monkeypatch):
    # TorchScript compiles torch.empty by its identity and cannot take the tests' poisoned one.
    monkeypatch.undo()
    model = models.b0(num_classes=4).eval()
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = model(x)
        batch = torch.export.Dim("batch")
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
        for other in (torch.jit.script(model), torch.jit.trace(model, x), exported):
            torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
        assert exported(torch.cat([x, x, x])).shape == (6, 4)


def test_torchvision_is_not_imported():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import torch; from effnet_fast import models\n"
        "print(models.b0(num_classes=2).eval()(torch.zeros(1, 3, 32, 32)).shape, models.count('b0'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 2]) Count(parameters=5288548, multiply_adds=385814752)" in done.stdout
