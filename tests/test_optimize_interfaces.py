"""Optimized models are called, answer and are asked as their models: names of arguments, kinds of outputs, attributes."""

from __future__ import annotations

import collections
import copy
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from networks import make_network
from patched_blocks import torchvision_block
from torch import Tensor, nn

import effnet_fast
from effnet_fast import EffnetFastError, use_backend
from effnet_fast.inference.module import OptimizedModel, PatchedCopy

SHAPE = (2, 3, 24, 24)


class Named(NamedTuple):
    features: Tensor
    nothing: None


class ModelOutput(collections.OrderedDict):  # type: ignore[type-arg]
    """As transformers': keys are attributes too, and it is not made from pairs."""

    def __init__(self, *, logits: Tensor, hidden: tuple[Tensor, ...]) -> None:
        super().__init__(logits=logits, hidden=hidden)
        self.__dict__.update(logits=logits, hidden=hidden)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value


class Finder(nn.Module):
    """A network of another kind that answers in the way it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), torchvision_block()
        self.config, self.num_features = {"threshold": 3}, 8

    def forward(self, pixel_values: Tensor, kind: str = "tensor", scale: float = 1.0) -> Any:
        y = self.block(self.stem(pixel_values)) * scale
        if kind == "output":
            return ModelOutput(logits=y.mean((2, 3)), hidden=(y, y + 1))
        if kind == "named":
            return Named(y, None)
        found = y.flatten()[y.flatten() > (1e9 if kind == "nothing" else -1e9)]
        return y if kind == "tensor" else [{"boxes": found, "labels": found.long(), "count": len(found)}]


class As(nn.Module):
    """Answers in one way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.finder, self.kind = Finder(), kind

    def forward(self, x: Tensor) -> Any:
        return self.finder(x, self.kind)


def optimize(model: nn.Module) -> nn.Module:
    with use_backend("cpu", "reference"):
        return effnet_fast.optimize(model.eval(), SHAPE)


def test_arguments_by_name() -> None:
    model, x = Finder(), torch.randn(SHAPE)
    optimized = optimize(model)
    assert isinstance(optimized, PatchedCopy)
    with torch.no_grad():
        torch.testing.assert_close(optimized(pixel_values=x), model(x), rtol=1e-4, atol=1e-4)
        got = optimized(x, scale=3.0, kind="named")
        torch.testing.assert_close(got.features, 3 * model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'image'"):
        optimized(x, image=x)


def test_arguments_of_whole_networks() -> None:
    x = torch.randn(1, 3, 32, 32)
    for name, argument in [("efficientnet_pytorch", "inputs"), ("timm", "x")]:
        optimized = effnet_fast.optimize(make_network(name), x)
        assert torch.equal(optimized(**{argument: x}), optimized(x))
        with pytest.raises(EffnetFastError, match=f"takes {argument}, got labels too"):
            optimized(x, labels=x)
        with pytest.raises(EffnetFastError, match="x: expected a Tensor, got NoneType"):
            optimized()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_the_models_kind(dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE).to(dtype)
    optimized = optimize(As("output"))
    got = optimized(x)
    assert type(got) is ModelOutput and got.logits is got["logits"]
    assert got.logits.dtype == got.hidden[0].dtype == dtype
    named = optimize(As("named"))(x)
    assert type(named) is Named and named.nothing is None and named.features.dtype == dtype
    (found,) = optimize(As("found"))(x)
    assert found["boxes"].dtype == dtype and found["labels"].dtype == torch.int64
    assert found["count"] == found["boxes"].numel() == found["labels"].numel() > 0


def test_a_model_that_finds_nothing() -> None:
    model = As("nothing")
    with pytest.warns(UserWarning, match="the model returned no number for the example"):
        optimized = optimize(model)
    (found,) = optimized(torch.randn(SHAPE))
    assert found["boxes"].shape == (0,) and found["count"] == 0


def test_shapes_that_depend_on_roundings() -> None:
    class Counts(Finder):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            y = super().forward(x)
            return y.new_zeros(1 + int(y.float().sum().view(torch.int32)) % 97)

    with pytest.raises(EffnetFastError, match="roundings in torch.float32 change the shapes"):
        optimize(Counts())


def test_attributes_of_a_patched_copy() -> None:
    optimized = optimize(Finder())
    assert optimized.config == {"threshold": 3} and optimized.num_features == 8
    for twin in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert twin.num_features == 8 and twin.block is twin.model.block
    with pytest.raises(AttributeError, match="num_labels"):
        _ = optimized.num_labels


def test_attributes_of_a_whole_network() -> None:
    model = make_network("timm-mobilenetv3")
    optimized = effnet_fast.optimize(model, (1, 3, 32, 32))
    assert isinstance(optimized, OptimizedModel)
    for twin in (optimized, copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert (twin.num_features, twin.num_classes) == (model.num_features, 10)
        assert twin.default_cfg["input_size"] == model.default_cfg["input_size"]
    optimized.default_cfg["input_size"] = None
    assert model.default_cfg["input_size"] is not None
    with pytest.raises(AttributeError, match="config"):
        _ = optimized.config
