"""The models against torchvision's, number for number, and what users do with them."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from effnet_fast import models
from effnet_fast.errors import EffnetFastError, UnknownModelError
from effnet_fast.nn.mbconv import ConvNormAct, MBConv, SqueezeExcitation, StochasticDepth

ALL = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"]


def torchvision_models():
    return pytest.importorskip("torchvision.models")


def pair(name, seed=0, **kwargs):
    """Ours and torchvision's model, each built right after the same seed."""
    stock_builder = getattr(torchvision_models(), f"efficientnet_{name}")
    torch.manual_seed(seed)
    ours = getattr(models, name)(**kwargs)
    after_ours = torch.get_rng_state()
    torch.manual_seed(seed)
    stock = stock_builder(**kwargs)
    assert torch.equal(after_ours, torch.get_rng_state()), "construction drew other random numbers"
    return ours, stock


def assert_close(ours, stock, what, tolerance=1e-5):
    """Largest difference against the largest value: 1e-5 of a tensor's scale."""
    assert ours.shape == stock.shape and ours.dtype == stock.dtype, what
    scale = stock.abs().max().clamp(min=1e-3)
    difference = (ours - stock).abs().max()
    assert difference <= tolerance * scale, f"{what}: {difference / scale:.2e} of scale"


def assert_same_state(ours, stock):
    a, b = ours.state_dict(), stock.state_dict()
    assert list(a) == list(b)
    for key, value in b.items():
        assert a[key].dtype == value.dtype and torch.equal(a[key], value), key


@pytest.fixture(scope="module", params=ALL)
def built(request):
    return request.param, *pair(request.param, seed=17)


def test_same_seed_same_weights(built):
    _, ours, stock = built
    assert_same_state(ours, stock)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in stock.named_buffers()]
    assert all(p.requires_grad for p in ours.parameters())


def test_same_modules_and_settings(built):
    _, ours, stock = built
    a, b = dict(ours.named_modules()), dict(stock.named_modules())
    assert list(a) == list(b)
    for name, module in b.items():
        if isinstance(module, nn.BatchNorm2d):
            for field in ("eps", "momentum", "affine", "track_running_stats"):
                assert getattr(a[name], field) == getattr(module, field), (name, field)
        if isinstance(module, nn.Conv2d):
            assert repr(a[name]) == repr(module), name
        if isinstance(module, (nn.Dropout, nn.SiLU)):
            assert repr(a[name]) == repr(module), name
        if type(module).__name__ == "StochasticDepth":
            assert a[name].p == module.p, name
        if type(module).__name__ == "MBConv":
            assert isinstance(a[name], MBConv)
            assert a[name].use_res_connect == module.use_res_connect
            assert a[name].out_channels == module.out_channels


def test_strict_state_dict_both_ways(built):
    name, ours, stock = built
    with torch.device("meta"):
        empty_ours = getattr(models, name)()
        empty_stock = getattr(torchvision_models(), f"efficientnet_{name}")()
    empty_ours.load_state_dict(stock.state_dict(), strict=True, assign=True)
    empty_stock.load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert_same_state(empty_ours, stock)
    assert_same_state(empty_stock, ours)


def test_optimizer_state_both_ways():
    ours, stock = pair("b0", num_classes=3)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ours, stock)]
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for model, optimizer in zip((ours, stock), optimizers, strict=True):
        model.train()
        torch.manual_seed(1)
        model(x).square().sum().backward()
        optimizer.step()
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), "parameter after a step")
        assert torch.equal(
            optimizers[0].state[p]["momentum_buffer"], optimizers[1].state[q]["momentum_buffer"]
        )


def randomize_statistics(*twins):
    """Statistics as after training, so that evaluation sees values of ordinary size in every layer."""
    generator = torch.Generator().manual_seed(5)
    for modules in zip(*(twin.modules() for twin in twins), strict=True):
        if isinstance(modules[0], nn.BatchNorm2d):
            mean = 0.1 * torch.randn(modules[0].num_features, generator=generator)
            var = 0.5 + torch.rand(modules[0].num_features, generator=generator)
            for module in modules:
                module.running_mean.copy_(mean)
                module.running_var.copy_(var)


CHANNELS_FIRST, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize(
    ("name", "batch", "size", "memory_format"),
    [
        ("b0", 2, (64, 64), CHANNELS_FIRST),
        ("b0", 2, (64, 64), CHANNELS_LAST),
        ("b0", 1, (65, 47), CHANNELS_FIRST),
        ("b0", 1, (65, 47), CHANNELS_LAST),
        ("b7", 1, (64, 64), CHANNELS_FIRST),
    ],
)
def test_eval_output(name, batch, size, memory_format):
    ours, stock = pair(name)
    randomize_statistics(ours, stock)
    x = torch.randn(batch, 3, *size).to(memory_format=memory_format)
    ours, stock = (m.eval().to(memory_format=memory_format) for m in (ours, stock))
    with torch.inference_mode():
        expected = stock(x)
        assert expected.std() > 1e-3, "a constant output would compare nothing"
        assert_close(ours(x), expected, "logits")


@pytest.mark.parametrize("name", ["b0", "b2", "b5"])
def test_training_step(name):
    """Two steps with dropout and stochastic depth: outputs, every gradient, running statistics."""
    ours, stock = pair(name, num_classes=10, stochastic_depth_prob=0.5)
    ours.train(), stock.train()
    x = torch.randn(4, 3, 64, 64)
    target = torch.randint(10, (4,))
    for step in range(2):
        images = [x.clone().requires_grad_() for _ in range(2)]
        outputs = []
        for model, image in zip((ours, stock), images, strict=True):
            torch.manual_seed(100 + step)
            outputs.append(model(image))
            nn.functional.cross_entropy(outputs[-1], target).backward()
        assert_close(outputs[0], outputs[1], f"output of step {step}")
        assert_close(images[0].grad, images[1].grad, f"input gradient of step {step}")
    torch.manual_seed(999)
    assert not torch.equal(ours(x), outputs[0]), "stochastic depth or dropout must depend on the seed"
    for (key, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert p.grad is not None, key
        assert_close(p.grad, q.grad, f"gradient of {key}")


@pytest.mark.parametrize("name", ["b0", "b2", "b5"])
def test_running_statistics(name):
    ours, stock = pair(name, num_classes=10)
    fresh = copy.deepcopy(ours.state_dict())
    x = torch.randn(3, 3, 64, 64)
    for model in (ours, stock):
        torch.manual_seed(1)
        with torch.no_grad():
            model.train()(x), model(x)
    expected = stock.state_dict()
    for key, value in ours.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == expected[key] == 2, key
        elif "running" in key:
            assert_close(value, expected[key], key)
            assert not torch.equal(value, fresh[key]), key


def test_evaluation_in_training_model_is_deterministic():
    model = models.b0(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", ALL)
def test_parameters_and_multiply_adds_are_torchvisions(name):
    enum = getattr(torchvision_models(), f"EfficientNet_{name.upper()}_Weights")
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
    with pytest.raises(EffnetFastError, match="resolution must be given for a module"):
        models.count(stem)


@pytest.mark.parametrize("resolution", [0, -1, 2.5, "224", True])
def test_count_refuses_resolutions(resolution):
    for function in (models.count, models.summarize):
        with pytest.raises(EffnetFastError, match="resolution must be a positive integer, got"):
            function("b0", resolution)


def test_summary_is_plain_data():
    import json

    data = json.loads(json.dumps(models.summarize("b0").as_dict()))
    assert data["stages"][3]["kernel_size"] == 5 and data["parameters"] == 5288548


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
    [("b8", "did you mean"), ("b", "did you mean"), ("efficientnet_b33", "did you mean 'b3'")],
)
def test_unknown_model_suggests(name, hint):
    with pytest.raises(UnknownModelError, match=rf"unknown model '{name}'; {hint}.*known: b0, b1") as raised:
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
    with pytest.raises(EffnetFastError, match=rf"EfficientNet: {argument} must be .*, got"):
        models.b0(**kwargs)
    with pytest.raises(TypeError, match="depth_multiplier"):
        models.b0(depth_multiplier=2)
    with pytest.raises(TypeError, match="positional"):
        models.b0(None)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, 32, 32), r"x must have 3 channels, got shape \[2, 4, 32, 32\]"),
        (torch.zeros(3, 32, 32), r"x must be \[N, C, H, W\], got shape \[3, 32, 32\]"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            r"x must be floating point and normalized, got torch\.uint8",
        ),
    ],
)
def test_bad_images(x, message):
    with torch.device("meta"):
        model = models.b0()
    with pytest.raises(EffnetFastError, match=message):
        model(x)


def test_norm_layer():
    import functools

    group = functools.partial(nn.GroupNorm, 8)
    ours, stock = pair("b0", norm_layer=group)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    assert_same_state(ours, stock)
    # torchvision's b5 refuses norm_layer; ours replaces its own.
    with torch.device("meta"):
        model = models.b5(norm_layer=functools.partial(nn.BatchNorm2d, momentum=0.3))
        plain = models.b0(norm_layer=functools.partial(nn.BatchNorm2d, affine=False))
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.3}
    assert plain.features[0][1].weight is None


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
    assert_same_state(scaled, named)
    small = models.efficientnet(width_mult=0.25, depth_mult=0.1, num_classes=2)
    assert [len(stage) for stage in small.features[1:-1]] == [1] * 7


def test_replaced_stem():
    gray = models.b0(num_classes=2).eval()
    gray.features[0][0] = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
    assert gray(torch.randn(1, 1, 32, 32)).shape == (1, 2)
    with pytest.raises(EffnetFastError, match="x must have 1 channels"):
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    ours, stock = pair("b0", num_classes=4)
    randomize_statistics(ours, stock)
    x = torch.randn(1, 3, 48, 48, dtype=dtype)
    with torch.inference_mode():
        y = ours.to(dtype).eval()(x)
        assert y.dtype == dtype and y.isfinite().all()
        assert_close(y, stock.to(dtype).eval()(x), "logits")


@pytest.mark.parametrize("train", [False, True])
def test_compiles_without_graph_breaks(train):
    model = models.b0(num_classes=4).train(train)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 40, 40)
    torch.manual_seed(2)
    expected = model(x)
    torch.manual_seed(2)
    assert_close(compiled(x), expected, "compiled output")


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
        assert torch.equal(found["logits"], model(x))


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
            assert_close(other(x), expected, "logits")
        assert exported(torch.cat([x, x, x])).shape == (6, 4)


def test_stochastic_depth_matches_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    x = torch.randn(64, 2, 3, 3)
    for p in (0.0, 0.3, 1.0):
        ours, stock = StochasticDepth(p), ops.StochasticDepth(p, "row")
        torch.manual_seed(4)
        y = ours(x)
        torch.manual_seed(4)
        assert torch.equal(y, stock(x))
        assert torch.equal(ours.eval()(x), x)
    with pytest.raises(EffnetFastError, match=r"^StochasticDepth: p must be between 0 and 1, got 1\.5$"):
        StochasticDepth(1.5)


@pytest.mark.parametrize("activation", ["silu", "relu", "relu6", "hardswish"])
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_block_forms(activation, gate, stride, kernel_size):
    """Every form of the block against the formula, written with functions."""
    f = nn.functional
    torch.manual_seed(0)
    block = MBConv(
        5,
        5,
        expand_ratio=3,
        kernel_size=kernel_size,
        stride=stride,
        squeeze_channels=2,
        activation=activation,
        gate=gate,
    ).eval()
    randomize_statistics(block)
    act, gate_act = getattr(f, activation), {"sigmoid": torch.sigmoid, "hardsigmoid": f.hardsigmoid}[gate]
    expand, depthwise, se, project = block.block

    def norm(z, bn):
        return f.batch_norm(z, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    x = torch.randn(2, 5, 9, 7)
    a = act(norm(f.conv2d(x, expand[0].weight), expand[1]))
    a = act(norm(f.conv2d(a, depthwise[0].weight, None, stride, kernel_size // 2, 1, 15), depthwise[1]))
    hidden = act(f.conv2d(a.mean((2, 3), keepdim=True), se.fc1.weight, se.fc1.bias))
    a = a * gate_act(f.conv2d(hidden, se.fc2.weight, se.fc2.bias))
    y = norm(f.conv2d(a, project[0].weight), project[1])
    if stride == 1:
        y = y + x
    assert_close(block(x), y, "block output")


def test_block_without_expansion_or_squeeze():
    plain = MBConv(6, 4, expand_ratio=1, kernel_size=3, stride=2, squeeze_channels=0)
    assert [type(m) for m in plain.block] == [ConvNormAct, ConvNormAct]
    assert plain(torch.randn(2, 6, 7, 7)).shape == (2, 4, 4, 4)
    full = MBConv(6, 6, expand_ratio=2, kernel_size=3, stride=1, squeeze_channels=3)
    assert [type(m) for m in full.block] == [ConvNormAct, ConvNormAct, SqueezeExcitation, ConvNormAct]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 3}, "MBConv: stride must be 1 or 2, got 3"),
        ({"kernel_size": 4}, "MBConv: kernel_size must be odd and positive, got 4"),
        ({"squeeze_channels": -1}, "MBConv: squeeze_channels must be 0 or greater, got -1"),
        ({"activation": "gelu"}, "activation must be one of silu, relu, relu6, hardswish, got 'gelu'"),
        ({"gate": "tanh"}, "gate must be one of sigmoid, hardsigmoid, got 'tanh'"),
        ({"stochastic_depth_prob": 2}, "p must be between 0 and 1, got 2"),
    ],
)
def test_block_refuses(change, message):
    arguments = {"expand_ratio": 2, "kernel_size": 3, "stride": 1, "squeeze_channels": 1, **change}
    with pytest.raises(EffnetFastError, match=message):
        MBConv(4, 4, **arguments)


def test_torchvision_is_not_imported():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import torch; from effnet_fast import models\n"
        "print(models.b0(num_classes=2).eval()(torch.zeros(1, 3, 32, 32)).shape, models.count('b0'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 2]) Count(parameters=5288548, multiply_adds=385814752)" in done.stdout
