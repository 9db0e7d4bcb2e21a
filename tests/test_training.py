"""What trainers do around a model keeps working: each compared with the stock block, on the reference backend."""

import copy

import pytest
import torch
from patched_blocks import pair
from torch import nn
from torch.utils.checkpoint import checkpoint

import effnet_fast
from effnet_fast import use_backend
from effnet_fast.ops import declare


@pytest.fixture(autouse=True)
def _reference():
    with use_backend("reference"):
        yield


def assert_same_state(stock: nn.Module, patched: nn.Module, tolerance: float = 1e-9) -> None:
    for (name, a), b in zip(stock.state_dict().items(), patched.state_dict().values(), strict=True):
        torch.testing.assert_close(
            b, a, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def steps(block: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer, count: int) -> None:
    torch.manual_seed(11)
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        block(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizer_steps(kind: type[torch.optim.Optimizer]) -> None:
    stock, patched, x = pair("torchvision")
    for block in (stock, patched):
        steps(block, x, kind(block.parameters(), lr=0.05), 5)
    # AdamW divides by the gradient's size: where it is zero by mathematics, rounding decides the direction.
    assert_same_state(stock, patched, 1e-9 if kind is torch.optim.SGD else 1e-4)


def test_gradient_accumulation() -> None:
    stock, patched, x = pair("torchvision")
    for block in (stock, patched):
        torch.manual_seed(4)
        for part in x.split(1):
            block(part).sum().backward()
    for p, q in zip(stock.parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-8)


def test_exponential_moving_average_copy() -> None:
    _, patched, x = pair("torchvision")
    average = torch.optim.swa_utils.AveragedModel(
        patched, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    )
    steps(patched, x, torch.optim.SGD(patched.parameters(), lr=0.1), 2)
    average.update_parameters(patched)
    patched.eval()
    average.eval()
    with torch.no_grad():
        assert average(x).isfinite().all()
        assert effnet_fast.report(average).fused == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    stock, patched, x = pair("torchvision")
    before = copy.deepcopy(stock.state_dict())
    results = []
    for block in (stock, patched):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(9)
        checkpoint(block, leaf, use_reentrant=reentrant).square().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(results[1], results[0])
    # Stock modules move their statistics again when the forward runs again; as without checkpointing is right.
    once, _, _ = pair("torchvision")
    once.load_state_dict(before)
    torch.manual_seed(9)
    once(x)
    assert_same_state(once, patched)


def test_grad_scaler_under_fp16_autocast() -> None:
    stock, patched, x = pair("torchvision", torch.float32)
    scales = []
    for block in (stock, patched):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.SGD(block.parameters(), lr=0.01)
        torch.manual_seed(6)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = block(x).float().square().mean()
        scaler.scale(loss).backward()
        assert all(p.grad.dtype == torch.float32 for p in block.parameters())
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales[0] == scales[1]
    for p, q in zip(stock.parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=2e-2, atol=2e-3)


def test_bfloat16_parameters() -> None:
    stock, patched, x = pair("torchvision", torch.float32)
    stock.bfloat16()
    patched.bfloat16()
    torch.manual_seed(6)
    expected = stock(x.bfloat16())
    torch.manual_seed(6)
    got = patched(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.05, atol=0.15)
    got.float().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in patched.parameters())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("mode", ["default", "deterministic"])
def test_backward_is_bitwise_repeatable(backend: str, mode: str) -> None:
    _, patched, x = pair("torchvision", torch.float32)
    runs = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode == "deterministic")
    try:
        for _ in range(2):
            block = copy.deepcopy(patched)
            torch.manual_seed(1)
            with use_backend(backend):
                block(x).square().sum().backward()
            runs.append([p.grad for p in block.parameters()])
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_incoming_gradient_with_stride_zero_or_permuted() -> None:
    stock, patched, x = pair("torchvision")
    for make in (lambda y: torch.ones((), dtype=y.dtype).expand_as(y), lambda y: torch.randn(y.shape[::-1]).to(y).permute(3, 2, 1, 0)):  # fmt: skip
        gradients = []
        for block in (stock, patched):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(2)
            y = block(leaf)
            torch.manual_seed(3)
            (gradient,) = torch.autograd.grad(y, leaf, make(y))
            gradients.append(gradient)
        torch.testing.assert_close(gradients[1], gradients[0])


def test_buffers_written_between_forward_and_backward() -> None:
    """As DistributedDataParallel does; stock BatchNorm fails there because it saves its buffers for the backward."""
    _, patched, x = pair("torchvision")
    gradients = []
    for write in (False, True):
        block = copy.deepcopy(patched)
        torch.manual_seed(8)
        y = block(x)
        if write:
            for buffer in block.buffers():
                buffer.add_(1)
        y.square().sum().backward()
        gradients.append([p.grad for p in block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


RUNNING = {
    "as built": {},
    "cumulative": {"momentum": None},
    "momentum 1": {"momentum": 1.0},
    "momentum 0": {"momentum": 0.0},
    "not tracked": {"track_running_stats": False},
    "uncounted": {"num_batches_tracked": None},
    "cumulative, uncounted": {"momentum": None, "num_batches_tracked": None},
    "no statistics": {"running_mean": None, "running_var": None},
    "frozen": {"training": False},
}


WAYS = [
    (mode, way, backend) for mode in RUNNING for way in ("plain", "op") for backend in ("reference", "cpu")
]
# Compiling takes seconds.
WAYS += [("as built", "compiled", "cpu"), ("cumulative", "compiled", "reference")]


@pytest.mark.parametrize("mode, way, backend", WAYS)
def test_running_statistics(mode: str, way: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every combination that nn.BatchNorm2d knows, with the op called plainly, through the dispatcher and compiled."""
    stock, patched, x = pair("torchvision", torch.float32)
    for block in (stock, patched):
        for bn in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
            for name, value in RUNNING[mode].items():
                setattr(bn, name, value)
    torch.manual_seed(1)
    for part in (x, x.flip(0)):
        stock(part)
    run = torch.compile(patched, fullgraph=True) if way == "compiled" else patched
    if way == "op":
        monkeypatch.setattr(declare, "is_plain", lambda args: False)
    torch.manual_seed(1)
    with use_backend(backend):
        for part in (x, x.flip(0)):
            run(part)
    for (name, a), b in zip(stock.named_buffers(), patched.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_failing_in_the_middle_of_a_batch_of_one_moves_nothing() -> None:
    """One value a channel, which PyTorch refuses: after it, every statistic is as its refusing module left it."""
    stock, patched, x = pair("torchvision", torch.float32)
    one = x[:1, :, :1, :1].contiguous()
    for block in (stock, patched):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            block(one)
    assert_same_state(stock, patched)
