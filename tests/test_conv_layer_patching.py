"""Which layers outside the blocks are patched, why others are not, and what copies and settings keep."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from conv_layers import pair
from patched_blocks import torchvision_efficientnet
from torch import nn

import effnet_fast
from effnet_fast import EffnetFastError
from effnet_fast.nn.mbconv import ConvNormAct

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
