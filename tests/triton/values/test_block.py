"""A patched torchvision MBConv on Triton alone: outputs, gradients and running statistics of the stock block."""

import copy

import pytest
import torch
from effnet_fast.kernels.runtime import INTERPRET
from torch import nn

import effnet_fast
from effnet_fast import dispatch, replay
from effnet_fast.tolerance import assert_accurate

efficientnet = pytest.importorskip("torchvision.models.efficientnet")
DEVICE = "cpu" if INTERPRET else "cuda"

# expand ratio, kernel, stride, channels in, out
BLOCKS = {
    "residual": (4, 3, 1, 16, 16),
    "5x5 stride 2": (6, 5, 2, 8, 24),
    "no expansion": (1, 3, 1, 24, 16),
}


def block(name: str) -> nn.Sequential:
    ratio, kernel, stride, cin, cout = BLOCKS[name]
    config = efficientnet.MBConvConfig(ratio, kernel, stride, cin, cout, 1, 1.0, 1.0)
    stock = nn.Sequential(efficientnet.MBConv(config, 0.2, nn.BatchNorm2d))
    for module in stock.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return stock.to(DEVICE)


def step(model: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    y = model(x)
    y.backward(dy)
    gradients = {f"grad {name}": p.grad for name, p in model.named_parameters()}
    statistics = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return {"y": y.detach(), "grad x": x.grad, **gradients, **statistics}


@pytest.fixture(autouse=True)
def _triton_only(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "triton")


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_training_step(name: str, mode: str) -> None:
    stock = block(name).train(mode == "train")
    patched, truth = copy.deepcopy(stock), copy.deepcopy(stock).double()
    effnet_fast.patch(patched)
    assert effnet_fast.report(patched).fused == 1, str(effnet_fast.report(patched))
    x = torch.randn(3, BLOCKS[name][3], 9, 8, device=DEVICE)
    dy = torch.randn_like(stock(x))
    for module in (stock, truth, patched):
        module.load_state_dict(truth.state_dict())
    expected, exact = step(stock, x, dy), step(truth, x.double(), dy.double())
    for key, value in step(patched, x, dy).items():
        # 16 roundings: the backward is a chain of four reductions over the same values.
        largest = exact[key].abs().max().item()
        error = (value.double() - exact[key]).abs().max().item()
        baseline = (expected[key].double() - exact[key]).abs().max().item()
        assert error <= 4 * baseline + 64 * 2**-24 * max(largest, 1.0), (key, error, baseline, largest)


@pytest.mark.parametrize("name", BLOCKS)
def test_inference(name: str) -> None:
    stock = block(name).eval()
    patched, truth = copy.deepcopy(stock), copy.deepcopy(stock).double()
    effnet_fast.patch(patched)
    x = torch.randn(3, BLOCKS[name][3], 9, 8, device=DEVICE)
    with torch.inference_mode():
        assert_accurate("y", patched(x), stock(x), truth(x.double()))


def test_what_ran_was_triton() -> None:
    from effnet_fast.backend.traffic import count_traffic

    patched = block("residual").eval()
    effnet_fast.patch(patched)
    with torch.inference_mode(), count_traffic() as traffic:
        patched(torch.randn(2, 16, 6, 6, device=DEVICE))
    # Small batches split an image's pixels over programs and merge the pooled parts in a launch of their own.
    small = {"batch_norm_fold", "sum_partials"}
    kernels = [launch.kernel for launch in traffic.launches if launch.kernel not in small]
    assert kernels == ["pointwise_fwd", "depthwise_fwd", "squeeze_excite_fwd", "pointwise_fwd"]


def test_training_steps_from_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches recorded at the first step and repeated give the others' values, running statistics included."""
    monkeypatch.setattr(replay, "_programs", {})
    stock = block("residual").train()
    inputs = [
        (torch.randn(2, 16, 5, 4, device=DEVICE), torch.randn(2, 16, 5, 4, device=DEVICE)) for _ in range(3)
    ]
    results = []
    for devices in (set(), {"cpu", "cuda"}):
        monkeypatch.setattr(replay, "devices", devices)
        patched = effnet_fast.patch(copy.deepcopy(stock))
        results.append([])
        for x, dy in inputs:
            patched.zero_grad(set_to_none=True)
            results[-1].append({name: t.clone() for name, t in step(patched, x, dy).items()})
    programs = [v.program for variants in replay._programs.values() for v in variants]
    assert len(programs) == 2 and None not in programs
    for expected, got in zip(*results, strict=True):
        assert all(torch.equal(expected[name], got[name]) for name in expected)
