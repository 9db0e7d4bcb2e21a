"""What users do with networks of other libraries goes on working when they are patched, before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from library_networks import FAMILIES, make
from torch import Tensor, nn

import effnet_fast
from effnet_fast import tolerance

#: Where something runs fused.
families = pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].fused])
X = (2, 3, 64, 64)


def assert_like(patched: nn.Module, stock: nn.Module, x: Tensor) -> None:
    """In evaluation mode, and judged by the stock model in fp64."""
    exact = copy.deepcopy(stock).double().eval()
    with torch.no_grad():
        truth = exact(x.double())
        got, baseline = patched.eval()(x), stock.eval()(x)
    # The largest error of a few numbers is a matter of luck, PyTorch's as well as ours.
    limit = 2 * tolerance.allowed(baseline, truth, torch.float32)
    assert tolerance.error(got, truth) <= limit


def fused(model: nn.Module) -> int:
    return effnet_fast.report(model.eval()).fused


@families
def test_printed(name: str) -> None:
    stock = make(name)
    wanted = repr(stock)
    printed = repr(effnet_fast.patch(stock))
    # Lists of modules print equal neighbours once.
    assert 0 < printed.count("[effnet_fast]") <= FAMILIES[name].found
    assert printed.replace("[effnet_fast]", "") == wanted


@families
def test_synchronized_batch_norm(name: str) -> None:
    x = torch.randn(X)
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    if "timm" in name:
        convert = pytest.importorskip("timm.layers").convert_sync_batchnorm
    stock = convert(make(name))
    after, before = convert(effnet_fast.patch(make(name))), effnet_fast.patch(convert(make(name)))
    for patched in (after, before):
        # Layers outside the blocks run their own code with it.
        assert 0 < fused(patched) <= FAMILIES[name].fused
        assert_like(patched, stock, x)


@families
def test_averaged_weights(name: str) -> None:
    patched, stock = effnet_fast.patch(make(name)), make(name)
    averages = [torch.optim.swa_utils.AveragedModel(model) for model in (patched, stock)]
    for average, model in zip(averages, (patched, stock), strict=True):
        for _ in range(2):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.9)
            average.update_parameters(model)
    assert fused(averages[0]) == FAMILIES[name].fused
    assert_like(averages[0], averages[1], torch.randn(X))


@families
def test_frozen(name: str) -> None:
    """Weights that do not train, normalizations that stay as they are."""
    patched, stock = effnet_fast.patch(make(name)), make(name)
    buffers = [b.clone() for b in stock.buffers()]
    for model in (patched, stock):
        model.train().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)):
                module.eval()
        model(torch.randn(X))
        for a, b in zip(model.buffers(), buffers, strict=True):
            assert torch.equal(a, b)
    assert_like(patched, stock, torch.randn(X))


# --- timm ---


def _timm(**options: object) -> nn.Module:
    torch.manual_seed(3)
    return pytest.importorskip("timm").create_model("mobilenetv3_small_075", num_classes=10, **options)


@pytest.mark.parametrize("patched_first", [True, False])
def test_timm_classifier_and_checkpointing(patched_first: bool) -> None:
    stock, patched = _timm(), _timm()
    if patched_first:
        effnet_fast.patch(patched)
    for model in (stock, patched):
        torch.manual_seed(4)
        model.reset_classifier(7)
        model.set_grad_checkpointing()
    effnet_fast.patch(patched)
    assert fused(patched) == 12
    assert_like(patched, stock, torch.randn(X))
    x = torch.randn(X)
    for model in (stock, patched):
        model.train()(x).square().sum().backward()
    for (name, a), b in zip(stock.named_parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(
            b.grad, a.grad, rtol=0.02, atol=1e-3 * a.grad.abs().max().item() + 1e-4, msg=name
        )


def test_timm_features() -> None:
    stock, patched = _timm(features_only=True).eval(), effnet_fast.patch(_timm(features_only=True)).eval()
    assert fused(patched) == 12
    whole_stock, whole = _timm().eval(), effnet_fast.patch(_timm()).eval()
    x = torch.randn(X)
    with torch.no_grad():
        pairs = [*zip(patched(x), stock(x), strict=True)]
        (end, levels), (end_stock, levels_stock) = (m.forward_intermediates(x) for m in (whole, whole_stock))
        pairs += [(end, end_stock), *zip(levels, levels_stock, strict=True)]
        pairs += [(whole.forward_features(x), whole_stock.forward_features(x))]
        optimized = effnet_fast.optimize(_timm(features_only=True).eval(), x)
        pairs += [*zip(optimized(x), stock(x), strict=True)]
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert optimized.feature_info.channels() == stock.feature_info.channels()


def test_timm_averages_and_freezes() -> None:
    utils = pytest.importorskip("timm.utils")
    stock, patched = _timm(), effnet_fast.patch(_timm())
    averages = [utils.ModelEmaV2(model, decay=0.5) for model in (stock, patched)]
    assert fused(averages[1].module) == 12
    for average, model in zip(averages, (stock, patched), strict=True):
        average.update(model)
    assert_like(averages[1].module, averages[0].module, torch.randn(X))
    # timm's freeze replaces BatchNorm by a class of its own: those blocks run their own code.
    for model in (stock, patched):
        utils.freeze(model, "blocks.1")
    reasons = {row.reason for row in effnet_fast.report(patched).rows if row.state == "eager"}
    assert reasons and all("FrozenBatchNormAct2d" in reason for reason in reasons)
    assert_like(patched, stock, torch.randn(X))


# --- torchvision ---


def _extract(model: nn.Module, leaves: list[type[nn.Module]] | None = None) -> nn.Module:
    library = pytest.importorskip("torchvision.models.feature_extraction")
    options = None if leaves is None else {"leaf_modules": leaves}
    nodes = {"features.3": "low", "features.12": "high"}
    return library.create_feature_extractor(model, nodes, tracer_kwargs=options)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("first", [effnet_fast.patch, lambda model: model], ids=["patched", "stock"])
def test_torchvision_feature_extractor(first: Callable[[nn.Module], nn.Module], whole: bool) -> None:
    """It records the plain modules, so that no block in it runs fused unless it is told to leave them whole."""
    stock = make("mobilenet_v2").eval()
    block_class = type(stock.features[1])
    extractor = _extract(first(make("mobilenet_v2")).eval(), [block_class] if whole else None)
    if whole:
        effnet_fast.patch(extractor)
    called = [
        extractor.get_submodule(node.target) for node in extractor.graph.nodes if node.op == "call_module"
    ]
    assert sum(module._get_name() == "InvertedResidual[effnet_fast]" for module in called) == 12 * whole
    stock = _extract(stock)
    x = torch.randn(X)
    with torch.no_grad():
        got, wanted = extractor(x), stock(x)
    for key in ("low", "high"):
        torch.testing.assert_close(got[key], wanted[key], rtol=1e-4, atol=1e-4)


def test_torchvision_slices_and_getters() -> None:
    stock, patched = make("mobilenet_v3_small").eval(), effnet_fast.patch(make("mobilenet_v3_small")).eval()
    getter = pytest.importorskip("torchvision.models._utils").IntermediateLayerGetter
    x = torch.randn(X)
    twins = [
        (
            nn.Sequential(*list(model.children())[:-1]),
            model.features[:6],
            getter(model.features, {"4": "a", "9": "b"}),
        )
        for model in (patched, stock)
    ]
    assert [fused(part) for part in twins[0]] == [13, 6, 10]
    with torch.no_grad():
        for got, wanted in zip(*twins, strict=True):
            a, b = got(x), wanted(x)
            for key in a if isinstance(a, dict) else ():
                torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-4)
            if not isinstance(a, dict):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# --- transformers ---


def test_transformers_saves_and_answers(tmp_path: object) -> None:
    stock = make("transformers mobilenet_v2").model.eval()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    patched.save_pretrained(tmp_path)
    loaded = effnet_fast.patch(type(stock).from_pretrained(tmp_path)).eval()
    x = torch.randn(X)
    optimized = effnet_fast.optimize(stock, x)
    with torch.no_grad():
        wanted = stock(pixel_values=x, output_hidden_states=True)
        for model in (patched, loaded, optimized):
            got = model(pixel_values=x, output_hidden_states=True)
            assert type(got) is type(wanted) and got.keys() == wanted.keys()
            torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-4, atol=1e-4)
            assert len(got.hidden_states) == len(wanted.hidden_states)
    assert optimized.config is not None and optimized.config.model_type == stock.config.model_type
