"""The models' own modules against torchvision's, number for number; test_fused_models.py has them fused."""

import copy
import functools

import pytest
import torch
from torch import nn

from effnet_fast import models, unpatch
from effnet_fast.nn import MBConv

ALL = models.list_models()


def torchvision_models():
    return pytest.importorskip("torchvision.models")


def pair(name, seed=0, **kwargs):
    """Ours and torchvision's model, each built right after the same seed."""
    stock_builder = getattr(torchvision_models(), f"efficientnet_{name}")
    torch.manual_seed(seed)
    ours = unpatch(getattr(models, name)(**kwargs))
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


def test_evaluation_is_deterministic():
    model = models.b0(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), model(x))


def test_norm_layer():
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    ours, stock = pair("b0", num_classes=4)
    randomize_statistics(ours, stock)
    x = torch.randn(1, 3, 48, 48, dtype=dtype)
    with torch.inference_mode():
        y = ours.to(dtype).eval()(x)
        assert y.dtype == dtype and y.isfinite().all()
        assert_close(y, stock.to(dtype).eval()(x), "logits")
