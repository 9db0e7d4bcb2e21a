"""The drop-in models as users get them, blocks fused, against torchvision's: fp32, to 1e-5."""

import pytest
import torch

import effnet_fast
from effnet_fast import use_backend

torchvision_models = pytest.importorskip("torchvision.models")

TOLERANCE = 1e-5


def assert_close(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the tensor's largest value (of 1 if that is smaller): through 40 blocks that use the batch's
    statistics stock fp32 itself is that far from fp64."""
    scale = max(1.0, expected.detach().abs().max().item())
    torch.testing.assert_close(
        got, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, msg=lambda m: f"{name}: {m}"
    )


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
        assert_close("logits", ours.eval()(x), stock.eval()(x))


@pytest.mark.parametrize("name, size", [("b0", 128), ("b2", 128), ("b5", 128)])
def test_training_step(name: str, size: int) -> None:
    """Dropout and stochastic depth on, from one seed."""
    ours, stock = pair(name)
    x = torch.randn(4, 3, size, size)
    outputs = []
    for model in (stock, ours):
        torch.manual_seed(1)
        outputs.append(model.train()(x))
        outputs[-1].square().mean().backward()
    assert_close("logits", outputs[1], outputs[0])
    for (key, p), q in zip(stock.named_parameters(), ours.parameters(), strict=True):
        assert_close(f"gradient of {key}", q.grad, p.grad)
    for (key, p), q in zip(stock.named_buffers(), ours.buffers(), strict=True):
        assert_close(key, q, p)
