"""What the kernels do not know runs the block's own code, and the report says why."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from patched_blocks import (
    pair,
    timm_block,
    torchvision_block,
)
from torch import nn

import effnet_fast
from effnet_fast import EffnetFastError, use_backend
from effnet_fast.nn.fingerprint import ATTRIBUTE, MOST_WAITS, Fingerprint

REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "forward-hook": (
        lambda m: m.block[1].register_forward_hook(lambda *_: None),
        "a hook is registered on its",
    ),
    "pre-hook": (lambda m: m.block[1][0].register_forward_pre_hook(lambda *_: None), "a hook is registered"),
    "backward-hook": (
        lambda m: m.block[3][0].register_full_backward_hook(lambda *_: None),
        "a hook is registered",
    ),
    "parametrization": (
        lambda m: nn.utils.parametrizations.weight_norm(m.block[1][0]),
        "ParametrizedConv2d is not nn.Conv2d",
    ),
    "old-weight-norm": (lambda m: nn.utils.spectral_norm(m.block[1][0]), "a hook is registered"),
    "group-norm": (lambda m: m.block[1].__setitem__(1, nn.GroupNorm(4, 32)), "GroupNorm after the depthwise"),
    "activation": (lambda m: m.block[0].__setitem__(2, nn.GELU()), "activation GELU has no fused kernel"),
    "conv-bias": (
        lambda m: m.block[0].__setitem__(0, nn.Conv2d(8, 32, 1)),
        "the expand convolution has a bias",
    ),
    "dilation": (
        lambda m: m.block[1].__setitem__(
            0, nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32, bias=False)
        ),
        "dilated",
    ),
    "kernel": (
        lambda m: m.block[1].__setitem__(0, nn.Conv2d(32, 32, (3, 5), padding=(1, 2), groups=32, bias=False)),
        "depthwise kernel .3, 5. is not square",
    ),
    "grouped": (
        lambda m: m.block[1].__setitem__(0, nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False)),
        "wider groups",
    ),
    "extra-layer": (
        lambda m: m.block.append(nn.Identity()),
        "Identity is not convolution, normalization, activation",
    ),
    "another-convolution": (
        lambda m: m.block.append(copy.deepcopy(m.block[3])),
        "its 5 layers are not expand, depthwise",
    ),
    "other-stochastic-depth": (
        lambda m: setattr(m, "stochastic_depth", nn.Identity()),
        "not stochastic depth",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_the_kernels_do_not_know_runs_eager_and_says_why(how: str) -> None:
    change, reason = REFUSED[how]
    stock, patched, _ = pair("torchvision", torch.float32)
    x = torch.randn(2, 8, 11, 11)
    change(stock)
    change(patched)
    patched.load_state_dict(stock.state_dict())
    for block in (stock, patched):
        block.eval()
    with use_backend("reference"):
        (row,) = effnet_fast.report(patched).rows
        assert row.state == "eager"
        assert re.search(reason, row.reason), row.reason
        with pytest.raises(EffnetFastError, match=reason):
            effnet_fast.patch(copy.deepcopy(stock), strict=True)
        if how not in ("extra-layer", "another-convolution"):
            torch.testing.assert_close(patched(x), stock(x))


@pytest.mark.parametrize(
    "facts, reason",
    [
        ({"kernel_size": 9, "padding": 4}, "cpu: its depthwise kernels are 3x3, 5x5 and 7x7, not 9"),
        ({"kernel_size": 3, "padding": 1, "stride": 3}, "cpu: its depthwise strides are 1 and 2, not 3"),
    ],
)
def test_sizes_are_refused_by_the_backends(facts: dict, reason: str) -> None:
    """No backend but the reference has them, which a block is not left to."""
    stock, patched, x = pair("torchvision", torch.float32)
    stencil = nn.Conv2d(32, 32, groups=32, bias=False, **facts)
    for block in (stock, patched):
        block.block[1][0] = stencil
        block.use_res_connect = facts.get("stride", 1) == 1
        block.eval()
    (row,) = effnet_fast.report(patched).rows
    assert row.state == "eager" and reason in row.reason, row.reason
    with torch.no_grad():
        torch.testing.assert_close(patched(x), stock(x))


def test_hooks_inside_are_called_and_hooks_on_the_block_too() -> None:
    _, patched, x = pair("torchvision")
    seen: list[str] = []
    patched.register_forward_hook(lambda *_: seen.append("block"))
    with use_backend("reference"):
        patched(x)
        patched.block[1].register_forward_hook(lambda *_: seen.append("inner"))
        patched(x)
    assert seen == ["block", "inner", "block"]


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"s2d": 1, "stride": 2, "exp_ratio": 2.0}, "space-to-depth"),
        ({"dilation": 2, "exp_ratio": 2.0}, "dilated"),
        ({"exp_kernel_size": 3, "exp_ratio": 2.0}, "expand convolution is not a plain 1x1"),
        ({"group_size": 8, "exp_ratio": 2.0}, "wider groups"),
        ({"act_layer": nn.GELU, "exp_ratio": 2.0}, "GELU"),
    ],
)
def test_timm_variants_without_kernels_run_eager(options: dict, reason: str) -> None:
    stock = timm_block("InvertedResidual", **options).eval()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    with use_backend("reference"):
        (row,) = effnet_fast.report(patched).rows
        assert row.state == "eager" and reason in row.reason, row.reason
        x = torch.randn(2, 8, 12, 12)
        torch.testing.assert_close(patched(x), stock(x))


def test_global_hook_runs_eager() -> None:
    stock, patched, x = pair("torchvision")
    stock.eval()
    patched.eval()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module).__name__)
    )
    try:
        with use_backend("reference"):
            patched(x)
    finally:
        handle.remove()
    assert seen.count("Conv2d") == 5


def test_strict_refusal_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(torchvision_block(), torchvision_block())
    model[1].block[0][2] = nn.GELU()
    before = [type(m) for m in model.modules()]
    with (
        use_backend("reference"),
        pytest.raises(EffnetFastError, match="1 cannot run fused: activation GELU"),
    ):
        effnet_fast.patch(model, strict=True)
    assert [type(m) for m in model.modules()] == before
    with pytest.raises(EffnetFastError, match="no MBConv block found in Linear"):
        effnet_fast.patch(nn.Linear(1, 1), strict=True)


def test_a_block_that_is_refused_for_what_it_is_made_of_is_rarely_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock = torchvision_block().eval()
    activation, stock.block[0][2] = stock.block[0][2], nn.GELU()
    patched, x = effnet_fast.patch(copy.deepcopy(stock)), torch.randn(2, 8, 11, 11)
    looks = []
    holds = Fingerprint.holds
    monkeypatch.setattr(Fingerprint, "holds", lambda *args: looks.append(1) or holds(*args))
    with use_backend("reference"), torch.no_grad():
        for _ in range(1000):
            y = patched(x)
        torch.testing.assert_close(y, stock(x))
        assert 10 < len(looks) < 30
        # The report asks at once, a call at the latest when it looks again.
        for block in (stock, patched):
            block.block[0][2] = activation
        assert effnet_fast.report(patched).fused == 1
        torch.testing.assert_close(patched(x), stock(x))
        for _ in range(MOST_WAITS + 1):
            looks.clear()
            patched(x)
        assert len(looks) == 1 and patched.__dict__[ATTRIBUTE].parts is not None


def test_a_hook_is_looked_at_in_every_call() -> None:
    _, patched, x = pair("torchvision", torch.float32)
    patched.eval()
    with use_backend("reference"), torch.no_grad():
        hook = patched.block[1].register_forward_hook(lambda *_: None)
        for _ in range(10):
            patched(x)
        assert patched.__dict__[ATTRIBUTE].refusal and not patched.__dict__[ATTRIBUTE].waits
        hook.remove()
        patched(x)
        assert not patched.__dict__[ATTRIBUTE].refusal
