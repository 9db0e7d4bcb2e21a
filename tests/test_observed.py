"""Who looks at what a block calls, or transforms it, gets the stock block: its values, its derivatives, its operations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from patched_blocks import BLOCKS, torchvision_block
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

import effnet_fast
from effnet_fast import EffnetFastError, ops, use_backend

#: efficientnet_pytorch's own Swish is an ``autograd.Function`` that ``torch.func`` refuses.
NAMES = ("torchvision", "own", "timm", "lite-static")


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    stock = BLOCKS[name]().double().eval()
    return stock, effnet_fast.patch(copy.deepcopy(stock)), torch.randn(3, 8, 5, 5, dtype=torch.float64)


def _loss(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y = torch.func.functional_call(model, (weights, buffers), x)
        return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sin().sum()

    return loss


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _one(loss: Callable[..., Tensor]) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda weights, image: loss(weights, image[None])


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda m, x: torch.func.grad(_loss(m))(_weights(m), x),
    "vjp": lambda m, x: torch.func.vjp(lambda t: _loss(m)(_weights(m), t), x)[1](x.new_ones(())),
    "jvp": lambda m, x: torch.func.jvp(lambda t: m(t), (x,), (x.flip(0),)),
    "jvp-weights": lambda m, x: torch.func.jvp(lambda w: _loss(m)(w, x), (_weights(m),), ({k: v.sin() for k, v in _weights(m).items()},)),
    "jacfwd": lambda m, x: torch.func.jacfwd(lambda s: m(x * s).sum((1, 2, 3)))(x.new_tensor(0.7)),
    "jacrev": lambda m, x: torch.func.jacrev(lambda t: m(t).sum((1, 2, 3)))(x),
    "hessian": lambda m, x: torch.func.hessian(lambda s: m(x * s).sin().sum())(x.new_tensor([0.7])),
    "linearize": lambda m, x: torch.func.linearize(lambda t: m.requires_grad_(False)(t), x)[1](x.flip(0)),
    "per-sample-gradients": lambda m, x: torch.func.vmap(torch.func.grad(_one(_loss(m))), (None, 0))(_weights(m), x),
    "vmap": lambda m, x: torch.func.vmap(lambda image: m(image[None])[0])(x),
    "vmap-no-grad": lambda m, x: torch.no_grad()(torch.func.vmap(lambda image: m(image[None])[0]))(x),
}  # fmt: skip


def assert_same(got: Any, expected: Any) -> None:
    leaves = [torch.utils._pytree.tree_leaves(tree) for tree in (got, expected)]
    assert len(leaves[0]) == len(leaves[1]) > 0
    for a, b in zip(*leaves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert any(leaf.abs().max() > 1e-3 for leaf in leaves[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
def test_torch_func(name: str, how: str) -> None:
    stock, patched, x = pair(name)
    with use_backend("reference"):
        patched(x)
        assert_same(TRANSFORMS[how](patched, x), TRANSFORMS[how](stock, x))
        # and fused again afterwards
        torch.testing.assert_close(patched(x), stock(x))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("carrier", ["input", "weight"])
def test_dual_numbers(carrier: str, grad: bool, frozen: bool) -> None:
    """Where gradients are off, an op that knows no tangents drops them without a word."""
    stock, patched, x = pair("torchvision")
    for block in (stock, patched):
        block.requires_grad_(not frozen)
    tangents = []
    with use_backend("reference"), torch.set_grad_enabled(grad), forward_ad.dual_level():
        for block in (stock, patched):
            if carrier == "input":
                y = block(forward_ad.make_dual(x, x.flip(0)))
            else:
                conv = block.block[1][0]
                weight = conv.weight.detach()
                del conv.weight
                conv.weight = forward_ad.make_dual(weight, weight.cos())
                y = block(x)
            tangents.append(forward_ad.unpack_dual(y).tangent)
    assert_same(tangents[1], tangents[0])


class Seen(TorchFunctionMode):
    """What quantization tools and profilers do: note every function, and change what it returns."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.names: list[str] = []
        self.scale = scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        out = func(*args, **(kwargs or {}))
        return out * self.scale if func is torch.conv2d else out


@pytest.mark.parametrize("name", NAMES)
def test_torch_function_modes(name: str) -> None:
    stock, patched, x = pair(name)
    with use_backend("reference"):
        patched(x)
        results = []
        for block in (stock, patched):
            with Seen(1.25) as mode:
                results.append((block(x), mode.names.count("conv2d")))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-10, atol=1e-10)
        assert results[0][1] == results[1][1] >= 2


def test_default_device_is_no_reason_to_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, patched, x = pair("torchvision")
    calls = []
    run = effnet_fast.nn.fused.run
    monkeypatch.setattr(effnet_fast.nn.fused, "run", lambda *args: calls.append(1) or run(*args))
    with use_backend("reference"):
        for device in ("cpu", "meta"):
            with torch.device(device):
                torch.testing.assert_close(patched(x), stock(x), rtol=1e-10, atol=1e-10)
        assert len(calls) == 2
        with torch.device("cpu"), Seen() as mode:
            patched(x)
        assert len(calls) == 2 and "conv2d" in mode.names


class Marked(Tensor):
    """A tensor that its library follows through every function."""


def test_inputs_of_another_class_stay_it() -> None:
    stock, patched, x = pair("torchvision")
    with use_backend("reference"):
        y = patched(x.as_subclass(Marked))
        assert type(y) is type(stock(x.as_subclass(Marked))) is Marked
        torch.testing.assert_close(y.as_subclass(Tensor), stock(x))


def test_compiled_transforms() -> None:
    stock, patched, x = pair("torchvision")

    def gradient(model: nn.Module, t: Tensor) -> Tensor:
        return torch.func.grad(lambda s: model(s).sin().sum())(t)

    compiled = torch.compile(lambda t: gradient(patched, t), backend="aot_eager")
    with use_backend("reference"):
        torch.testing.assert_close(compiled(x), gradient(stock, x), rtol=1e-9, atol=1e-9)


def test_ops_called_directly() -> None:
    """A single op is the composition of PyTorch's functions there."""
    x, w = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    tangent = torch.randn_like(x)

    def op(t: Tensor) -> Tensor:
        return ops.pointwise(t, w, act="silu").y

    def stock(t: Tensor) -> Tensor:
        return nn.functional.silu(nn.functional.conv2d(t, w[:, :, None, None]))

    with use_backend("reference"):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                assert_same(torch.func.jvp(op, (x,), (tangent,)), torch.func.jvp(stock, (x,), (tangent,)))
        got = torch.func.grad(lambda t: op(t).sin().sum())(x)
        assert_same(got, torch.func.grad(lambda t: stock(t).sin().sum())(x))
        assert_same(torch.func.vmap(lambda t: op(t[None])[0])(x), stock(x))


def test_optimized_models_say_that_they_have_no_derivatives() -> None:
    from networks import make_network

    fast = effnet_fast.optimize(make_network("torchvision"), (1, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(EffnetFastError, match="optimized model"):
        torch.func.jvp(fast, (x,), (x,))


def test_a_block_inside_a_fake_or_stock_model_is_still_fused() -> None:
    model = effnet_fast.patch(nn.Sequential(torchvision_block(), torchvision_block()).double().eval())
    with use_backend("reference"):
        assert effnet_fast.report(model).fused == 2


class Net(nn.Module):
    """nncf keeps something of its own inside the model, over which a Sequential would step."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 1), block, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


@pytest.mark.slow
def test_nncf_finds_the_quantizers_of_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    # It compiles an extension of its own when it is first used.
    monkeypatch.setenv("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
    nncf = pytest.importorskip("nncf")
    stock = Net(BLOCKS["torchvision"]()).eval()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    images = [torch.randn(1, 3, 12, 12) for _ in range(4)]
    results = []
    for model in (stock, patched):
        # So that blocks would be fused where nothing kept them from it.
        with use_backend("reference"), torch.no_grad():
            quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=4)
            count = sum("Quantizer" in type(module).__name__ for module in quantized.modules())
            results.append((count, quantized(images[0])))
    assert results[0][0] == results[1][0] >= 8
    assert results[0][1].abs().max() > 1e-3
    torch.testing.assert_close(results[1][1], results[0][1])
