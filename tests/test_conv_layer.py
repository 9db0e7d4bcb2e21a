"""Convolution, BatchNorm and activation outside the blocks as one op in patched models: values, as the stock layer's."""

import copy
from collections.abc import Callable

import pytest
import torch
from conv_layers import LAYERS, pair
from patched_blocks import assert_same, shake_batch_norms, torchvision_efficientnet
from torch import nn
from torch.utils.checkpoint import checkpoint

import effnet_fast
from effnet_fast import use_backend
from effnet_fast.backend import native
from effnet_fast.nn import fused_layer
from effnet_fast.ops.conv_bn_act import run_conv_bn_act
from effnet_fast.tolerance import assert_accurate, error


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
