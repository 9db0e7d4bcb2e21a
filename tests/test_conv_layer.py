"""Convolution, BatchNorm and activation outside the blocks (stem, head) as one op, and patched into models."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from patched_blocks import assert_same, shake_batch_norms, torchvision_efficientnet
from torch import nn
from torch.utils.checkpoint import checkpoint

import effnet_fast
from effnet_fast import EffnetFastError, use_backend
from effnet_fast.backend import native
from effnet_fast.nn import fused_layer
from effnet_fast.nn.mbconv import ConvNormAct
from effnet_fast.ops import BatchNorm, conv_bn_act
from effnet_fast.ops.conv_bn_act import run_conv_bn_act
from effnet_fast.tolerance import assert_accurate, error

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "stem": lambda: ConvNormAct(8, 16, 3, stride=2),
    "head": lambda: ConvNormAct(8, 24, 1),
    "narrowing": lambda: ConvNormAct(8, 5, 1, activation="none"),
    "relu6": lambda: ConvNormAct(8, 12, 5, activation="relu6"),
    "one-channel": lambda: ConvNormAct(8, 1, 3),
}


@pytest.fixture
def reference() -> Iterator[None]:
    with use_backend("reference"):
        yield


class Network(nn.Module):
    """A layer beside a block: alone it would not be patched."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.block = effnet_fast.nn.MBConv(
            8, 8, expand_ratio=2, kernel_size=3, stride=1, squeeze_channels=2, stochastic_depth_prob=0.3
        )
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.block(x))


def pair(
    name: str, dtype: torch.dtype = torch.float64, **options
) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    stock = shake_batch_norms(Network(LAYERS[name]())).to(dtype)
    return stock, effnet_fast.patch(copy.deepcopy(stock), **options), torch.randn(3, 8, 11, 10, dtype=dtype)


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_patched_layer_is_the_stock_layer(name: str, mode: str, recompute: bool, reference: None) -> None:
    stock, patched, x = pair(name, recompute_expand=recompute)
    for model in (stock, patched):
        model.train(mode == "train")
    report = effnet_fast.report(patched)
    assert [row.name for row in report.rows if row.state == "fused"] == ["block", "layer"], str(report)
    assert_same(stock, patched, x)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = stock(x)
        torch.manual_seed(3)
        torch.testing.assert_close(patched(x), expected, rtol=1e-10, atol=1e-10)


CHANGED: dict[str, Callable[[nn.Module], object]] = {
    "frozen-batch-norm": lambda m: m.layer[1].eval(),
    "cumulative-average": lambda m: setattr(m.layer[1], "momentum", None),
    "without-affine": lambda m: m.layer.__setitem__(1, nn.BatchNorm2d(16, affine=False).double()),
    "without-running-statistics": lambda m: m.layer.__setitem__(
        1, nn.BatchNorm2d(16, track_running_stats=False).double()
    ),
    "frozen-weight": lambda m: m.layer[0].weight.requires_grad_(False),
    "frozen-bias": lambda m: m.layer[1].bias.requires_grad_(False),
    "all-frozen-but-input": lambda m: m.layer.requires_grad_(False),
}


@pytest.mark.parametrize("how", CHANGED)
def test_partly_frozen(how: str, reference: None) -> None:
    stock, patched, x = pair("stem")
    for model in (stock, patched):
        CHANGED[how](model)
    assert effnet_fast.report(patched).fused == 2
    for _ in range(2):
        for model in (stock, patched):
            torch.manual_seed(7)
            model.zero_grad()
            model(x).square().sum().backward()
        for p, q in zip(stock.parameters(), patched.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)
        for p, q in zip(stock.buffers(), patched.buffers(), strict=True):
            torch.testing.assert_close(q, p)


REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "hook": (
        lambda m: m.layer[1].register_forward_hook(lambda *_: None),
        "a hook is registered on its Batch",
    ),
    "sync": (
        lambda m: m.layer.__setitem__(1, nn.SyncBatchNorm.convert_sync_batchnorm(m.layer[1])),
        "SyncBatchNorm",
    ),
    "bias": (
        lambda m: m.layer.__setitem__(0, nn.Conv2d(8, 16, 3, 2, 1)),
        "the layer's convolution has a bias",
    ),
    "groups": (
        lambda m: m.layer.__setitem__(0, nn.Conv2d(8, 16, 3, 2, 1, groups=2, bias=False)),
        "has groups",
    ),
    "padding": (
        lambda m: m.layer.__setitem__(0, nn.Conv2d(8, 16, 3, padding="same", bias=False)),
        "padding='same'",
    ),
    "activation": (lambda m: m.layer.__setitem__(2, nn.GELU()), "activation GELU"),
    "extra": (lambda m: m.layer.append(nn.Identity()), "is not convolution, normalization, activation"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_the_op_does_not_know_runs_eager_and_says_why(how: str, reference: None) -> None:
    change, reason = REFUSED[how]
    stock, patched, _ = pair("stem", torch.float32)
    x = torch.randn(2, 8, 9, 9)
    for model in (stock, patched):
        change(model)
        model.eval()
    patched.load_state_dict(stock.state_dict())
    row = effnet_fast.report(patched).rows[1]
    assert (row.name, row.kind, row.state) == ("layer", "ConvNormAct", "eager") and reason in row.reason, row
    torch.testing.assert_close(patched(x), stock(x))
    with pytest.raises(EffnetFastError, match="layer cannot run fused"):
        effnet_fast.patch(copy.deepcopy(stock), strict=True)


@pytest.mark.parametrize("shape", [(0, 8, 9, 9), (1, 8, 1, 1), (2, 8, 0, 5), (2, 7, 9, 9), (8, 9, 9)])
def test_inputs_for_torch_behave_as_torch(shape: tuple[int, ...], reference: None) -> None:
    def outcome(layer: nn.Module) -> object:
        try:
            return layer(torch.randn(shape)).shape
        except (RuntimeError, ValueError) as error:
            return type(error), str(error)

    for name in ("stem", "head"):
        stock, patched, _ = pair(name, torch.float32)
        assert outcome(stock.layer) == outcome(patched.layer)


def test_only_outside_blocks_and_only_beside_them(reference: None) -> None:
    layer = ConvNormAct(3, 4, 3)
    assert effnet_fast.report(effnet_fast.patch(nn.Sequential(layer))).rows == []
    model = torchvision_efficientnet.efficientnet_b0(num_classes=3)
    kinds = [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    effnet_fast.patch(model, recompute_expand=True)
    rows = effnet_fast.report(model).rows
    assert [row.kind for row in rows] == ["Conv2dNormActivation", *["MBConv"] * 16, "Conv2dNormActivation"]
    assert (rows[0].name, rows[-1].name) == ("features.0", "features.8")
    assert list(model.state_dict()) == keys
    assert isinstance(model.features[0], torchvision_efficientnet.Conv2dNormActivation)
    effnet_fast.unpatch(model)
    assert [type(m) for m in model.modules()] == kinds
    assert not any("_effnet_fast_recompute_expand" in m.__dict__ for m in model.modules())


def test_efficientnet_v2_with_its_dense_layers(reference: None) -> None:
    """FusedMBConv is not a block of ours, its convolution layers are layers."""
    torch.manual_seed(0)
    config = torchvision_efficientnet.FusedMBConvConfig(4, 3, 2, 8, 8, 1)
    blocks = [torchvision_efficientnet.FusedMBConv(config, 0.2, nn.BatchNorm2d), effnet_fast.nn.MBConv(
        8, 8, expand_ratio=2, kernel_size=3, stride=1, squeeze_channels=2)]  # fmt: skip
    stock = shake_batch_norms(nn.Sequential(*blocks)).double()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    assert effnet_fast.report(patched).fused == 3
    assert_same(stock, patched, torch.randn(2, 8, 12, 12, dtype=torch.float64))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_the_patch_and_the_setting(
    copier: Callable[[nn.Module], nn.Module], reference: None
) -> None:
    _, patched, x = pair("stem", recompute_expand=True)
    twin = copier(patched)
    assert type(twin.layer) is type(patched.layer) and repr(twin) == repr(patched)
    assert all(part.__dict__["_effnet_fast_recompute_expand"] for part in (twin.layer, twin.block))
    torch.manual_seed(1)
    expected = patched(x)
    torch.manual_seed(1)
    torch.testing.assert_close(twin(x), expected)


def test_setting_is_changed_only_when_said(reference: None) -> None:
    def settings(model: nn.Module) -> list[bool]:
        return [getattr(m, "_effnet_fast_recompute_expand", False) for m in (model.block, model.layer)]

    _, model, _ = pair("head")
    assert settings(model) == [False, False]
    assert settings(effnet_fast.patch(model, recompute_expand=True, filter_fn=lambda m, n: n == "layer")) == [
        False,
        True,
    ]
    assert settings(effnet_fast.patch(model)) == [False, True]
    assert settings(effnet_fast.patch(model, recompute_expand=False)) == [False, False]
    with pytest.raises(EffnetFastError, match="recompute_expand: expected True, False or None, got 'yes'"):
        effnet_fast.patch(model, recompute_expand="yes")


@pytest.mark.parametrize(
    ("dtype", "given"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize("name", LAYERS)
def test_accuracy_on_the_cpu_backend(name: str, dtype: torch.dtype, given: torch.dtype) -> None:
    """As near to fp64 as twice PyTorch's own in the same precision: the worse of its modules and of its functions
    (the reference backend), because its GEMM sums rows in another way than its convolutions. bf16 is autocast's, of an
    fp32 layer; what is ``given`` may have its dtype already, as behind a block."""
    if not native.available("_ops")[0]:
        pytest.skip(native.available("_ops")[1])
    truth = shake_batch_norms(LAYERS[name]()).double()
    results = []
    x, seed = torch.randn(4, 8, 33, 31).to(dtype), None
    for kind in ("cpu", "reference", "stock", "truth"):
        exact = kind == "truth"
        layer = copy.deepcopy(truth).to(torch.float64 if exact else torch.float32)
        model = nn.Sequential(layer)
        if kind in ("cpu", "reference"):
            layer.__class__ = type(pair(name)[1].layer)
        data = x.to(torch.float64 if exact else given, copy=True).requires_grad_()
        mixed = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32 and not exact)
        with mixed, use_backend(kind if kind in ("cpu", "reference") else "auto"):
            y = model(data)
        seed = torch.randn(y.shape) if seed is None else seed
        y.backward(seed.to(y.dtype))
        results.append({"y": y, "x": data.grad} | {k: p.grad for k, p in layer.named_parameters()})
        results[-1] |= {k: b for k, b in layer.named_buffers() if b.is_floating_point()}
    got, *baselines, truths = results
    for key, exact_value in truths.items():
        worst = max((b[key] for b in baselines), key=lambda t: error(t, exact_value))
        assert_accurate(f"{name}: {key}", got[key], worst, exact_value, dtype)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_layer_behind_a_block_is_fused_under_autocast(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its input is bf16 then and its weight fp32; stock modules compute in bf16, and so does it."""
    _, patched, x = pair("head", torch.float32)
    patched.train(mode == "train")
    dtypes = []

    def watched(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> object:
        dtypes.append((x.dtype, weight.dtype))
        return run_conv_bn_act(x, weight, *rest)

    monkeypatch.setattr(fused_layer, "run_conv_bn_act", watched)
    with torch.autocast("cpu", torch.bfloat16), use_backend("reference"):
        assert patched(x).dtype == torch.bfloat16
    assert dtypes == [(torch.bfloat16, torch.bfloat16)]


def test_layer_of_another_dtype_than_its_input_is_pytorchs(reference: None) -> None:
    """Without autocast: PyTorch's own error, and nothing is cast in silence."""
    layer = pair("head", torch.float32)[1].layer
    with pytest.raises(RuntimeError, match="BFloat16"):
        layer(torch.randn(1, 8, 4, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["stem", "head"])
def test_recomputing_changes_no_bit(name: str) -> None:
    backend = "cpu" if native.available("_ops")[0] else "reference"
    _, keep, x = pair(name, torch.float32)
    again = effnet_fast.patch(copy.deepcopy(keep), recompute_expand=True)
    gradients = []
    with use_backend(backend):
        for model in (keep, again):
            torch.manual_seed(5)
            model(x).square().sum().backward()
            gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "recompute"), [("stem", True), ("head", False)])
def test_compile_fullgraph(name: str, recompute: bool, reference: None) -> None:
    _, patched, x = pair(name, recompute_expand=recompute)
    twin = copy.deepcopy(patched)
    compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
    for model, call in ((twin, twin), (patched, compiled)):
        torch.manual_seed(5)
        call(x).square().sum().backward()
        with torch.no_grad():
            model.eval()
    for p, q in zip(twin.parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)
    for p, q in zip(twin.buffers(), patched.buffers(), strict=True):
        torch.testing.assert_close(q, p)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_moves_statistics_once(reentrant: bool, reference: None) -> None:
    _, patched, x = pair("stem", recompute_expand=True)
    twin = copy.deepcopy(patched)
    torch.manual_seed(2)
    checkpoint(patched, x.requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    torch.manual_seed(2)
    twin(x).square().sum().backward()
    for p, q in zip(twin.parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)
    for p, q in zip(twin.buffers(), patched.buffers(), strict=True):
        torch.testing.assert_close(q, p)


def norm(c: int, training: bool = True) -> BatchNorm:
    return BatchNorm(torch.ones(c), torch.zeros(c), None, None, 1e-5, training)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_in_any_order(dtype: torch.dtype, reference: None) -> None:
    """Beside channels_last images PyTorch's own backward refuses some of them in fp64."""
    torch.manual_seed(0)
    x, dense = torch.randn(2, 3, 4, 5, dtype=dtype), torch.randn(1, 3, 1, 2, dtype=dtype)
    bn = BatchNorm(None, None, torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype), 1e-5, False)
    grads = []
    for weight in (dense, dense.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        weight = weight.detach().requires_grad_()
        y = conv_bn_act(x, weight, bn, act="silu").y
        grads.append(torch.autograd.grad(y.square().sum(), weight)[0])
    torch.testing.assert_close(*grads)


BAD: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
    "x": (lambda x: conv_bn_act(x[0], torch.randn(4, 3, 3, 3), norm(4)), "conv_bn_act: x: expected"),
    "rank": (lambda x: conv_bn_act(x, torch.randn(4, 3), norm(4)), r"weight: expected \[C, Cin, kh, kw\]"),
    "channels": (
        lambda x: conv_bn_act(x, torch.randn(4, 2, 1, 1), norm(4)),
        r"weight: expected .*\(4, 3, 1, 1\)",
    ),
    "vector": (lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(5)), "bn.weight: expected"),
    "statistics": (lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4, False)), "bn.mean: expected"),
    "stride": (
        lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4), stride=0),
        "stride: expected an int >= 1",
    ),
    "padding": (
        lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4), padding=(1, 2, 3)),
        "padding: expected an int >= 0",
    ),
    "act": (lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4), act="gelu"), "act: expected one of"),
    "small": (
        lambda x: conv_bn_act(x, torch.randn(4, 3, 9, 9), norm(4)),
        "x: expected an image large enough",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_input_is_named(how: str, reference: None) -> None:
    call, message = BAD[how]
    with pytest.raises(EffnetFastError, match=message):
        call(torch.randn(2, 3, 6, 6))


def test_the_op_alone(reference: None) -> None:
    """Training, frozen statistics and inference agree with PyTorch's functions."""
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    mean, var = torch.randn(5).double(), torch.rand(5).double() + 0.5
    for training, options in ((True, {}), (False, {}), (False, {"inference": True})):
        bn = BatchNorm(None, None, mean, var, 1e-3, training)
        out = conv_bn_act(x, weight, bn, stride=(2, 1), padding=(0, 1), act="hardswish", **options)
        z = nn.functional.conv2d(x, weight, None, (2, 1), (0, 1))
        y = nn.functional.hardswish(nn.functional.batch_norm(z, mean.clone(), var.clone(), None, None, training, 0.1, 1e-3))  # fmt: skip
        torch.testing.assert_close(out.y, y)
        if not options:
            assert out.stats is not None
            for a, b in zip(
                *(torch.autograd.grad(v.square().sum(), (x, weight)) for v in (out.y, y)), strict=True
            ):
                torch.testing.assert_close(a, b)
