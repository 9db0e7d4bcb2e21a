"""The drop-in models as users get them, blocks fused, against torchvision's: fp32, to 1e-5."""

import pytest
import torch

import effnet_fast
from effnet_fast import use_backend

torchvision_models = pytest.importorskip("torchvision.models")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _reference():
    with use_backend("reference"):
        yield


def pair(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    ours = effnet_fast.create(name)
    torch.manual_seed(0)
    stock = getattr(torchvision_models, f"efficientnet_{name}")()
    report = effnet_fast.report(ours)
    assert report.fused == len(report.rows) > 0, str(report)
    return ours, stock


@pytest.mark.parametrize("name", ["b0", "b3", "b5", "b7"])
def test_inference(name: str) -> None:
    ours, stock = pair(name)
    x = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), stock.eval()(x), **CLOSE)


@pytest.mark.parametrize("name, size", [("b0", 128), ("b2", 128), ("b5", 96)])
def test_training_step(name: str, size: int) -> None:
    """Dropout and stochastic depth on, from one seed."""
    ours, stock = pair(name)
    x = torch.randn(4, 3, size, size)
    outputs = []
    for model in (stock, ours):
        torch.manual_seed(1)
        outputs.append(model.train()(x))
        outputs[-1].square().mean().backward()
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)
    for (key, p), q in zip(stock.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, **CLOSE, msg=lambda m, key=key: f"gradient of {key}: {m}")
    for (key, p), q in zip(stock.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(q, p, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")
