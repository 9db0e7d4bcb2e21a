"""Tensors made inside name their dtype and device: ``torch.set_default_dtype`` and ``_device`` change nothing."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from networks import make_network
from patched_blocks import pair, shake_batch_norms
from torch import Tensor, nn

import effnet_fast

PACKAGE = Path(effnet_fast.__file__).parent
#: In a checkout ``effnet_fast.kernels`` lies beside the package.
SOURCES = [PACKAGE, *(folder for folder in [PACKAGE.parent / "kernels"] if folder.is_dir())]

#: Functions of torch whose dtype or device is the default's where none is named.
FACTORIES = {
    *("arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand", "randint"),
    *("randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}
#: Old constructors, which take the default's dtype with no way to say another.
LEGACY = {"Tensor", "FloatTensor"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(name, call) of every ``torch.name(...)``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        function = getattr(node, "func", None)
        if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "torch":
            yield function.attr, node


def unnamed(path: Path) -> list[str]:
    found = []
    for name, call in calls(path):
        named = {keyword.arg for keyword in call.keywords}
        incomplete = name in FACTORIES and not named >= {"dtype", "device"} and "out" not in named
        if incomplete or name in LEGACY or (name == "Generator" and not (call.args or named)):
            found.append(f"{path}:{call.lineno}: torch.{name}")
    return found


def test_every_factory_call_names_dtype_and_device(tmp_path: Path) -> None:
    files = [path for folder in SOURCES for path in folder.rglob("*.py")]
    assert sum(name in FACTORIES for path in files for name, _ in calls(path)) > 20
    assert [line for path in files for line in unnamed(path)] == []
    bad = tmp_path / "bad.py"
    bad.write_text("torch.zeros(3, dtype=d)\ntorch.Generator()\ntorch.ones(3, dtype=d, device=e)\n")
    assert [line.rsplit(".", 1)[1] for line in unnamed(bad)] == ["zeros", "Generator"]


@contextmanager
def defaults(dtype: torch.dtype | None, device: str | None) -> Iterator[None]:
    old = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        if device is not None:
            torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(old)
        torch.set_default_device(None)


SETTINGS = [(torch.float64, None), (torch.bfloat16, None), (None, "meta"), (torch.float64, "meta")]


@pytest.mark.parametrize("dtype, device", SETTINGS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_optimized_models(kind: torch.dtype, dtype: torch.dtype | None, device: str | None) -> None:
    model, x = make_network("timm-lite"), torch.randn(2, 3, 40, 33)
    program = effnet_fast.optimize(model, x, dtype=kind)
    wanted = program(x)
    with defaults(dtype, device):
        assert torch.equal(program(x), wanted)
        assert torch.equal(program(x[:, :, :31]), program(x[:, :, :31].clone()))
        assert torch.equal(effnet_fast.optimize(model, x, dtype=kind)(x), wanted)
        assert torch.equal(effnet_fast.optimize(model, (1, 3, 32, 32), dtype=kind)(x), wanted)


@pytest.mark.parametrize("dtype, device", SETTINGS)
def test_the_headless_program(dtype: torch.dtype | None, device: str | None) -> None:
    """A network that pools without a head gets an identity made for it."""
    model = make_network("efficientnet_pytorch-dynamic")
    x = torch.randn(1, 3, 33, 40)
    wanted = effnet_fast.optimize(model, x)(x)
    with defaults(dtype, device):
        assert torch.equal(effnet_fast.optimize(model, x)(x), wanted)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of one training step, and the inference after it."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = model.train()(x)
    y.float().square().mean().backward()
    found = [y, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]
    with torch.no_grad():
        return [t.detach().clone() for t in found] + [model.eval()(x)]


@pytest.mark.parametrize("dtype, device", SETTINGS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_patched_blocks(
    kind: torch.dtype, backend: str, dtype: torch.dtype | None, device: str | None
) -> None:
    _, block, x = pair("own", torch.float32)
    block.stochastic_depth.p = 0.0  # random numbers are drawn otherwise in other settings
    model = nn.Sequential(effnet_fast.nn.ConvNormAct(8, 8, 3), block, effnet_fast.nn.ConvNormAct(8, 16, 1))
    model = effnet_fast.patch(shake_batch_norms(model)).to(kind)
    before, x = copy.deepcopy(model), x.to(kind)
    with effnet_fast.use_backend(backend):
        wanted = step(model, x)
        with defaults(dtype, device):
            got = step(before, x)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype and a.device == b.device
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype, device", SETTINGS)
def test_a_block_stays_fused(dtype: torch.dtype | None, device: str | None) -> None:
    _, block, x = pair("torchvision", torch.float32)
    with defaults(dtype, device), torch.no_grad():
        assert effnet_fast.report(block).fused == 1
        assert block.eval()(x).dtype == torch.float32
