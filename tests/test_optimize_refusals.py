"""What ``optimize`` cannot represent is refused by name; networks of another kind get their blocks patched."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from networks import make_network
from patched_blocks import shake_batch_norms, torchvision_block
from plain_block import PlainBlock, plain_parts
from torch import nn

import effnet_fast
from effnet_fast import EffnetFastError, UnsupportedBlockError, tolerance, use_backend
from effnet_fast.inference.check import cast
from effnet_fast.inference.extract import extract, fold
from effnet_fast.inference.module import OptimizedModel, PatchedCopy
from effnet_fast.nn import ConvBN

SHAPE = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return make_network("torchvision")


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "training": (nn.Module.train, r"the model \(EfficientNet\): it is in training mode"),
    "dropout": (lambda m: m.classifier[0].train(), r"classifier.0 \(Dropout\): it is in training mode"),
    "hook": (
        lambda m: m.features[0].register_forward_hook(lambda *_: None),
        r"features.0 .*: a hook is registered on it",
    ),
    "hook-on-a-block": (
        lambda m: m.features[2][1].register_forward_pre_hook(lambda *_: None),
        r"features.2.1 \(MBConv\): a hook is registered",
    ),
    "parametrization": (
        lambda m: nn.utils.parametrizations.weight_norm(m.features[1][0].block[0][0]),
        r"features.1.0.block.0.0 .*: it is parametrized",
    ),
    "forward": (lambda m: setattr(m, "forward", lambda x: x), "its forward was replaced"),
    "fp64": (nn.Module.double, r"weights are torch.float64"),
    "fp16-classifier": (lambda m: m.classifier[1].half(), r"classifier.1 \(Linear\): .*float16"),
    "meta": (lambda m: m.to("meta"), "weights are on meta, optimize works on the CPU.*patch"),
    "block": (
        lambda m: m.features[3][0].block[0].__setitem__(2, nn.GELU().eval()),
        "features.3.0: activation GELU",
    ),
    "unknown-block": (lambda m: m.features[3].append(nn.Identity().eval()), "features.3.2: no adapter knows"),
    "stem": (
        lambda m: m.features[0].__setitem__(2, nn.GELU().eval()),
        r"features.0: activation GELU has no fused",
    ),
    "stem-shape": (
        lambda m: m.features[0].__setitem__(0, nn.Conv2d(3, 32, (3, 1), bias=False).eval()),
        r"features.0.0: groups 1, kernel \(3, 1\)",
    ),
    "head": (
        lambda m: m.features[8].__setitem__(1, nn.GroupNorm(4, 1280).eval()),
        "features.8.0: GroupNorm after the head convolution",
    ),
    "pool": (lambda m: setattr(m, "avgpool", nn.AdaptiveMaxPool2d(1).eval()), "avgpool: AdaptiveMaxPool2d"),
    "classifier-hook": (
        lambda m: m.classifier[1].register_forward_hook(lambda *_: None),
        r"classifier.1 \(Linear\): a hook is registered",
    ),
    "statistics": (
        lambda m: m.features[0].__setitem__(1, nn.BatchNorm2d(32, track_running_stats=False).eval()),
        "features.0.0: its BatchNorm has no running statistics",
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_refused_by_name(how: str, network: nn.Module) -> None:
    change, reason = CHANGES[how]
    model = copy.deepcopy(network)
    change(model)
    with pytest.raises(UnsupportedBlockError) as caught:
        effnet_fast.optimize(model, SHAPE)
    assert re.search(reason, str(caught.value)) and "\n" not in str(caught.value)


def test_global_hooks_are_refused(network: nn.Module) -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(UnsupportedBlockError, match="global module hook"):
            effnet_fast.optimize(network, SHAPE)
    finally:
        handle.remove()


def test_bad_arguments(network: nn.Module) -> None:
    optimize = effnet_fast.optimize
    for arguments, reason in [
        (("b0", SHAPE), "model: expected a torch.nn.Module, got str"),
        ((network, "image"), r"example: expected a tensor or a shape \(N, C, H, W\), got 'image'"),
        ((network, (3, 32, 32)), "example: expected a tensor or a shape"),
        ((network, (1, 3, 0, 32)), "example: expected a tensor or a shape"),
        ((network, torch.zeros(0, 3, 32, 32)), "got an empty batch"),
        ((network, torch.zeros(3, 32, 32)), r"x: expected \[N, C, H, W\], got shape \[3, 32, 32\]"),
        ((network, torch.zeros(1, 4, 32, 32)), r"x: expected \[N, 3, H, W\], got shape \[1, 4, 32, 32\]"),
        (
            (network, torch.zeros(SHAPE, dtype=torch.uint8)),
            "x: expected float32 or bfloat16, got torch.uint8",
        ),
        ((network, torch.zeros(SHAPE, device="meta")), "x: expected a tensor on the CPU"),
        ((network, torch.full(SHAPE, float("nan"))), "outputs are not finite"),
    ]:
        with pytest.raises(EffnetFastError, match=reason):
            optimize(*arguments)
    with pytest.raises(EffnetFastError, match=r"dtype: expected .*, got torch.float16"):
        optimize(network, SHAPE, dtype=torch.float16)
    with pytest.raises(EffnetFastError, match="the cuda backend has no compile_network"), use_backend("cuda"):
        optimize(network, SHAPE)
    optimized = optimize(network, SHAPE)
    for x, reason in [
        (torch.zeros(1, 1, 32, 32), r"expected \[N, 3, H, W\]"),
        (torch.zeros(SHAPE, dtype=torch.float64), "expected float32 or bfloat16"),
        (torch.zeros(SHAPE, device="meta"), "expected a tensor on the CPU"),
        ([1], "expected a Tensor, got list"),
    ]:
        with pytest.raises(EffnetFastError, match=reason):
            optimized(x)


def test_folding_is_exact_where_statistics_are_extreme() -> None:
    conv, bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3)
    bn.running_mean.copy_(torch.tensor([0.0, 1e4, -3.0, 5.0]))
    bn.running_var.copy_(torch.tensor([0.0, 1e-8, 1e8, 1.0]))
    nn.init.normal_(bn.weight)
    folded = fold(ConvBN(conv, bn.eval()))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    wanted = bn.double()(conv.double()(x))
    got = nn.functional.conv2d(x, folded.weight.double(), folded.bias.double())
    scale = wanted.abs().amax((0, 2, 3), keepdim=True)
    assert ((got - wanted).abs() / scale).max() < 1e-6
    plain = fold(ConvBN(conv.float(), nn.BatchNorm2d(4, affine=False).eval()))
    torch.testing.assert_close(plain.weight, conv.weight / (1 + 1e-5) ** 0.5)
    assert not plain.bias.any()


def test_shortened_and_rebuilt_networks(network: nn.Module) -> None:
    x = torch.randn(2, 3, 48, 48)
    no_head, no_classifier = copy.deepcopy(network), copy.deepcopy(network)
    no_head.features, no_head.classifier = no_head.features[:3], nn.Linear(24, 4).eval()
    no_classifier.classifier = nn.Identity().eval()
    no_classifier.features[2][1] = _registered()
    for model in (no_head, no_classifier):
        optimized = effnet_fast.optimize(model, x)
        assert isinstance(optimized, OptimizedModel)
        with torch.no_grad():
            tolerance.assert_accurate(
                "short", optimized(x), model(x), copy.deepcopy(model).double()(x.double())
            )
    assert extract(no_head)[0].head is not None


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "two-layers": lambda: nn.Sequential(nn.Linear(1280, 7), nn.ReLU(), nn.Dropout(0.3), nn.Linear(7, 3)),
    "as-fastai": lambda: nn.Sequential(
        nn.BatchNorm1d(1280), nn.Dropout(0.3), nn.Linear(1280, 9, bias=False), nn.ReLU(), nn.BatchNorm1d(9)
    ),
    "of-their-own": lambda: Normalized(),
}


class Normalized(nn.Module):
    """A classifier that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 1280))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x) @ self.weight.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_of_another_kind_costs_only_itself(
    kind: str, dtype: torch.dtype, network: nn.Module
) -> None:
    model, x = copy.deepcopy(network), torch.randn(2, 3, 48, 48)
    model.classifier = CLASSIFIERS[kind]().eval()
    optimized = effnet_fast.optimize(model, x, dtype=dtype)
    assert isinstance(optimized, OptimizedModel) and ", then " in repr(optimized)
    truth = copy.deepcopy(model).double()(x.double()).detach()
    baseline = cast(copy.deepcopy(model), dtype)(x.to(dtype)).detach().float()
    got = optimized(x)
    assert got.dtype == torch.float32 and not got.requires_grad
    tolerance.assert_accurate(kind, got, baseline, truth, dtype)
    assert optimized(x.bfloat16()).dtype == torch.bfloat16
    # The model's own layers are copies, and travel with pickles.
    assert torch.equal(pickle.loads(pickle.dumps(optimized))(x), got)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(optimized(x), got)


def _registered() -> nn.Module:
    class Wider(PlainBlock):
        """24 channels in and out, as torchvision's third stage."""

        def __init__(self) -> None:
            super().__init__()
            self.expand, self.project = (
                nn.Conv2d(24, 16, 1, bias=False),
                nn.Conv2d(16, 24, 1, bias=False),
            )
            self.bn3 = nn.BatchNorm2d(24)

    effnet_fast.register_block(Wider, plain_parts)
    return shake_batch_norms(Wider()).eval()


class Segmenter(nn.Module):
    """A network that nobody knows, around blocks that are known."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = torchvision_block(stride=2, cout=16)
        self.same = torchvision_block()
        self.last = nn.ConvTranspose2d(16, 8, 2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        x = self.stem(x)
        small = self.down(x)
        return {"mask": self.same(x) + self.last(small), "levels": [x, small]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_of_another_kind_gets_its_blocks_patched(dtype: torch.dtype) -> None:
    model, x = Segmenter().eval(), torch.randn(2, 3, 24, 24)
    with use_backend("reference"):
        optimized = effnet_fast.optimize(model, x, dtype=dtype)
        got = optimized(x)
    assert isinstance(optimized, PatchedCopy) and "2 blocks patched" in repr(optimized)
    assert effnet_fast.report(model).fused == 0
    with torch.no_grad():
        wanted = model(x)
    limit = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(got["mask"], wanted["mask"], rtol=limit, atol=limit)
    torch.testing.assert_close(got["levels"], wanted["levels"], rtol=limit, atol=limit)
    with pytest.raises(EffnetFastError, match="requires a gradient"):
        optimized(x.requires_grad_())


def test_a_network_without_known_blocks_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    with pytest.raises(UnsupportedBlockError, match="Sequential is not a network of .* holds no MBConv"):
        effnet_fast.optimize(model, SHAPE)
    block = nn.Sequential(nn.Conv2d(3, 8, 1), torchvision_block()).eval()
    block[1].block[0][2] = nn.GELU().eval()
    with pytest.raises(UnsupportedBlockError, match="none of its blocks runs fused; 1: activation GELU"):
        effnet_fast.optimize(block, SHAPE)
