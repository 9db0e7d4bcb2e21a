"""Surgery on every module inside a patched block, after it has run: what the stock block computes then is right.

Everything users and their tools do to a part of a network is done to every part of every library's block: replaced,
subclassed under the same name, wrapped, hooked, parametrized, given a ``forward`` of its own, its class patched, every
attribute changed. The oracle is the same surgery on a stock copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from patched_blocks import BLOCKS, tolerance_of
from torch import Tensor, nn
from torch.nn.utils import parametrize
from wrappers import SCALE, Wrapped

import effnet_fast
from effnet_fast import use_backend

#: One block per class and way of padding; the others differ by sizes.
NAMES = (
    *("torchvision", "mobilenet_v2", "mobilenet_v3", "mnasnet", "own", "lite-static", "lite-dynamic"),
    *("efficientnet_pytorch", "segmentation", "geffnet", "geffnet-separable"),
    *("transformers", "transformers-stride2", "transformers-mobilenet"),
    *("timm", "timm-same", "timm-separable"),
)

Surgery = Callable[[nn.Module, str, pytest.MonkeyPatch], Any]


def scaled(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) * SCALE

    return run


def _parent(block: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parents, name = path.split(".")
    return block.get_submodule(".".join(parents)), name


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * SCALE


def instance_forward(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    module = block.get_submodule(path)
    module.forward = scaled(module.forward)


def written_into_dict(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    module = block.get_submodule(path)
    # One attribute goes as another comes: counting them would see nothing.
    module.__dict__.pop("seen", None)
    module.__dict__["forward"] = scaled(module.forward)


def subclass_of_the_same_name(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    module = block.get_submodule(path)
    kind = type(module)
    space = {"forward": lambda self, *args: kind.forward(self, *args) * SCALE, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), space | {"__qualname__": kind.__qualname__})


def look_alike(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    parent, name = _parent(block, path)
    kind = type(parent._modules[name])
    space = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    parent._modules[name] = type(kind.__name__, (Wrapped,), space)(parent._modules[name])


def wrapped(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    parent, name = _parent(block, path)
    setattr(parent, name, Wrapped(parent._modules[name]))


def forward_hook(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    block.get_submodule(path).register_forward_hook(lambda module, args, out: out * SCALE)


def forward_pre_hook(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    block.get_submodule(path).register_forward_pre_hook(lambda module, args: (args[0] * SCALE, *args[1:]))


def backward_hook(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    def hook(module: nn.Module, grads: tuple[Tensor, ...], _: object) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else grad * SCALE for grad in grads)

    block.get_submodule(path).register_full_backward_hook(hook)


def backward_pre_hook(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    block.get_submodule(path).register_full_backward_pre_hook(lambda module, grads: (grads[0] * SCALE,))


def parametrized(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    module = block.get_submodule(path)
    if isinstance(module._parameters.get("weight"), Tensor):
        parametrize.register_parametrization(module, "weight", Scale())


def removed(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    parent, name = _parent(block, path)
    delattr(parent, name)


def identity(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    parent, name = _parent(block, path)
    parent._modules[name] = nn.Identity()


def compiled_in_place(block: nn.Module, path: str, _: pytest.MonkeyPatch) -> None:
    module = block.get_submodule(path)
    module._compiled_call_impl = scaled(module._call_impl)


def class_forward(block: nn.Module, path: str, patch: pytest.MonkeyPatch) -> None:
    kind = type(block.get_submodule(path))
    patch.setattr(kind, "forward", scaled(kind.forward), raising=False)


def class_call(block: nn.Module, path: str, patch: pytest.MonkeyPatch) -> None:
    kind = type(block.get_submodule(path))
    patch.setattr(kind, "__call__", scaled(kind.__call__), raising=False)


SURGERIES: dict[str, Surgery] = {
    function.__name__: function
    for function in (
        *(instance_forward, written_into_dict, subclass_of_the_same_name, look_alike, wrapped, removed, identity),
        *(forward_hook, forward_pre_hook, backward_hook, backward_pre_hook, parametrized, compiled_in_place),
        *(class_forward, class_call),
    )
}  # fmt: skip


def outcome(block: nn.Module, x: Tensor) -> list[Tensor | None] | str:
    """Output, every gradient, every buffer; or that it raised."""
    try:
        leaf = x.clone().requires_grad_()
        torch.manual_seed(7)
        y = block(leaf)
        weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
        wanted = [leaf, *block.parameters()]
        grads = torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True)
        return [y, *grads, *block.buffers()]
    except Exception:
        return "raised"


def assert_alike(
    what: str, patched: nn.Module, stock: nn.Module, x: Tensor, tolerance: float = 1e-9
) -> list[Tensor | None] | str:
    expected, got = outcome(stock, x), outcome(patched, x)
    if isinstance(expected, str) or isinstance(got, str):
        if isinstance(expected, str) != isinstance(got, str):
            pytest.fail(f"{what}: only {'stock' if isinstance(expected, str) else 'patched'} raised")
        return expected
    for a, b in zip(expected, got, strict=True):
        if a is None or b is None:
            assert (a is None) == (b is None), what
        else:
            torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}")
    return expected


def prepared(master: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """A stock block and its patched twin, which has run."""
    stock, patched = copy.deepcopy(master), effnet_fast.patch(copy.deepcopy(master))
    for module in patched.modules():
        module.seen = True
    patched(x)
    patched.load_state_dict(master.state_dict())
    return stock, patched


def master_of(name: str, mode: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(11)
    # Odd sizes, and statistics and weights that make every part matter.
    master = BLOCKS[name]().double().train(mode == "train")
    for parameter in master.parameters():
        parameter.data.normal_(0, 0.5)
    return master, torch.randn(2, 8, 7, 6, dtype=torch.float64)


def same(a: list[Tensor | None] | str, b: list[Tensor | None] | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a is b
    return all((s is None and t is None) or torch.equal(s, t) for s, t in zip(a, b, strict=False))


IN_EVAL = ("instance_forward", "subclass_of_the_same_name", "wrapped", "forward_hook", "class_forward")


@pytest.mark.parametrize(
    "how, mode", [(how, "train") for how in SURGERIES] + [(how, "eval") for how in IN_EVAL]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_part_counts(name: str, how: str, mode: str) -> None:
    master, x = master_of(name, mode)
    paths = [path for path, _ in master.named_modules() if path]
    changed, tolerance = 0, 10 * tolerance_of(name)
    with use_backend("reference"):
        untouched = outcome(copy.deepcopy(master), x)
        for path in paths:
            stock, patched = prepared(master, x)
            with pytest.MonkeyPatch.context() as patch:
                SURGERIES[how](stock, path, patch)
                if not how.startswith("class"):
                    SURGERIES[how](patched, path, patch)
                changed += not same(assert_alike(path, patched, stock, x, tolerance), untouched)
            if how.startswith("class"):
                assert_alike(f"{path} put back", patched, stock, x, tolerance)
                assert effnet_fast.report(patched).fused == 1
    assert changed > len(paths) // 3 or (how == "parametrized" and changed >= 3)


#: Of nn.Module's own, concerning neither values nor calls.
UNREAD = ("_compiled_call_impl", "_is_full_backward_hook", "_reversed_padding_repeated_twice", "transposed", "output_padding")  # fmt: skip


def other_values(value: object) -> Iterator[object]:
    """Values of the same kind that an attribute may take."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 0)
    elif isinstance(value, float):
        yield from (value + 0.25, 0.5)
    elif isinstance(value, tuple) and all(type(v) is int for v in value):
        yield from (tuple(v + 1 for v in value), list(value), [v + 1 for v in value])
    elif isinstance(value, str):
        yield from {"zeros": ["reflect", "circular"], "row": ["batch"], "": ["same"]}.get(value, ["another"])
    elif value is None:
        yield from (2, "same")


@pytest.mark.parametrize("name", NAMES)
def test_every_attribute_counts(name: str) -> None:
    master, x = master_of(name, "train")
    stock, patched = prepared(master, x)
    state = copy.deepcopy(master.state_dict())
    changed = tried = 0

    def compare(what: str) -> list[Tensor | None] | str:
        for block in (stock, patched):
            block.load_state_dict(state)
        return assert_alike(what, patched, stock, x, 10 * tolerance_of(name))

    with use_backend("reference"):
        untouched = compare("untouched")
        for path, module in master.named_modules():
            for key, value in list(vars(module).items()):
                for other in other_values(value) if key not in UNREAD else ():
                    what = f"{path}.{key} = {other!r}"
                    pair = [block.get_submodule(path) for block in (stock, patched)]
                    for twin in pair:
                        setattr(twin, key, copy.deepcopy(other))
                    changed += not same(compare(what), untouched)
                    tried += 1
                    if isinstance(other, list):
                        # Changed in place, which no comparison of attributes sees.
                        for twin in pair:
                            getattr(twin, key)[0] += 1
                        compare(f"{what}, in place")
                    for twin in pair:
                        setattr(twin, key, value)
        compare("put back")
        assert effnet_fast.report(patched).fused == 1
    assert tried > 90 and changed > 20


def test_what_is_unchanged_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    master, x = master_of("torchvision", "eval")
    with use_backend("reference"):
        _, patched = prepared(master, x)
        reads = []
        read = effnet_fast.patching.registry._read
        monkeypatch.setattr(
            effnet_fast.patching.registry, "_read", lambda *args: reads.append(1) or read(*args)
        )
        for _ in range(3):
            patched(x)
        assert not reads
        # Weights are fetched at every call; modes and modules are read again.
        patched.block[1][0].weight = nn.Parameter(2 * patched.block[1][0].weight.detach())
        patched(x)
        assert not reads
        for change in (patched.train, patched.eval):
            change()
            patched(x)
        assert len(reads) == 2
        hooked = patched.block[1].register_forward_hook(lambda *_: None)
        for _ in range(3):
            patched(x)
        assert len(reads) == 3
        hooked.remove()
        patched(x)
        assert len(reads) == 4


def test_nothing_of_it_travels() -> None:
    master, x = master_of("own", "eval")
    with use_backend("reference"):
        _, patched = prepared(master, x)
        twin = copy.deepcopy(patched)
        twin.block[0].register_forward_hook(lambda module, args, out: out * SCALE)
        assert not torch.allclose(twin(x), patched(x))
        replica = patched._replicate_for_data_parallel()
        torch.testing.assert_close(replica(x), patched(x))
    effnet_fast.unpatch(patched)
    assert set(vars(patched)) - {"seen"} == set(vars(master))
