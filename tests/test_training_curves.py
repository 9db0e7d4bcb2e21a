"""The loss curves of docs/training.md, in small: stock and fused training from one seed, step by step."""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import effnet_fast

pytest.importorskip("sklearn")
efficientnet = pytest.importorskip("torchvision.models.efficientnet")


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks/training_curves.py"
    spec = importlib.util.spec_from_file_location("training_curves", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_network() -> nn.Module:
    config = efficientnet.MBConvConfig
    stages = [config(1, 3, 1, 16, 8, 1), config(4, 5, 2, 8, 12, 2), config(4, 3, 2, 12, 16, 1)]
    torch.manual_seed(0)
    return efficientnet.EfficientNet(stages, dropout=0.2, stochastic_depth_prob=0.2, num_classes=10)


@pytest.mark.parametrize(
    "dtype, backend, tolerance", [("fp64", "reference", 1e-9), ("fp32", "cpu", 1e-3)], ids=["fp64", "fp32"]
)
def test_stock_and_fused_curves_coincide(curves, dtype: str, backend: str, tolerance: float) -> None:
    stock = small_network()
    fused = effnet_fast.patch(copy.deepcopy(stock), strict=True)
    job = curves.Job("stock", dtype, 0, steps=8, batch=8, size=16, peak=0.02, warmup=3)
    expected = curves.train(job, stock)
    got = curves.train(job._replace(kind="fused", backend=backend), fused)
    assert got["losses"] == pytest.approx(expected["losses"], rel=tolerance)
    assert expected["losses"][-1] < expected["losses"][0]
    if dtype == "fp64":
        assert got["accuracy"] == expected["accuracy"]
        for a, b in zip(stock.state_dict().values(), fused.state_dict().values(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9)
