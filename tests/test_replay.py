"""Recorded programs of the block's training ops against the same calls decided anew: bit for bit, in memory of their own."""

import copy
from itertools import chain

import pytest
import torch
from effnet_fast.kernels import tuning
from patched_blocks import pair, shake_batch_norms
from torch import Tensor, nn

import effnet_fast
from effnet_fast import dispatch, replay, use_backend
from effnet_fast.nn.mbconv import ConvNormAct
from effnet_fast.replay.program import Program


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are for GPUs; here the CPU's calls are recorded instead of launches."""
    monkeypatch.setattr(replay, "_programs", {})
    monkeypatch.setattr(replay, "devices", {"cpu"})


def programs() -> list[Program | None]:
    """Of what was recorded; a first call is only remembered."""
    return [v.program for variants in replay._programs.values() for v in variants if v.tried]


def step(block: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Everything a training step makes or moves."""
    x = x.detach().requires_grad_()
    block.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    y = block(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in block.parameters()), *(b.clone() for b in block.buffers())]


def steps(
    block: nn.Module, inputs: list[tuple[Tensor, Tensor]], replayed: bool, training: bool = True
) -> list[list[Tensor]]:
    replay.devices = {"cpu"} if replayed else set()
    block = copy.deepcopy(block)
    return [step(block, *pair_) if training else [block(pair_[0])] for pair_ in inputs]


def batches(x: Tensor, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn_like(x), torch.randn_like(x)) for _ in range(count)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keeps e", "recomputes e"])
def test_a_step_from_programs(backend: str, precision: str, recompute: bool) -> None:
    _, patched, x = pair("torchvision", torch.float32)
    effnet_fast.patch(patched, recompute_expand=recompute)
    if precision == "bf16":
        patched, x = patched.bfloat16(), x.bfloat16()
    inputs = batches(x)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        expected = steps(patched, inputs, replayed=False)
        got = steps(patched, inputs, replayed=True)
    assert len(programs()) == 2 and None not in programs()
    for want, have in zip(expected, got, strict=True):
        for a, b in zip(want, have, strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()


@pytest.mark.parametrize("training, made", [(True, 4), (False, 1)], ids=["training", "inference"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keeps z", "recomputes z"])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 2)], ids=["head", "stem"])
def test_layers_outside_the_blocks_from_programs(
    kernel: int, stride: int, recompute: bool, training: bool, made: int
) -> None:
    """``made``: forward and backward of block and layer, or the layer's forward alone: a block's inference is no program."""
    _, patched, x = pair("torchvision", torch.float32)
    layer = shake_batch_norms(ConvNormAct(patched.block[-1][0].out_channels, 24, kernel, stride=stride))
    model = nn.Sequential(patched, layer).train(training)
    effnet_fast.patch(model, recompute_expand=recompute)
    replay.devices = set()
    like = model(x)
    inputs = [(a, torch.randn_like(like)) for a, _ in batches(x)]
    with use_backend("cpu"), torch.set_grad_enabled(training):
        expected, got = (steps(model, inputs, replayed, training) for replayed in (False, True))
    assert len(programs()) == made and None not in programs()
    for want, have in zip(chain(*expected), chain(*got), strict=True):
        assert torch.equal(want, have) and want.stride() == have.stride()


def test_a_program_keeps_no_memory_and_shares_none() -> None:
    """Two calls of one program are alive at once: gradients of the first are not the second's."""
    _, patched, x = pair("torchvision", torch.float32)
    (first, dy), (second, _), (third, _) = batches(x)

    def both(replayed: bool) -> list[Tensor]:
        replay.devices = {"cpu"} if replayed else set()
        block = copy.deepcopy(patched)
        leaves = [t.clone().requires_grad_() for t in (first, second, third)]
        torch.manual_seed(5)
        outputs = [block(t) for t in leaves]
        for y in outputs:
            y.backward(dy)
        return [t.grad for t in leaves] + [p.grad for p in block.parameters()]

    with use_backend("cpu"):
        expected, got = both(False), both(True)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_another_block_of_the_same_shapes_has_its_own_tensors() -> None:
    _, patched, x = pair("torchvision", torch.float32)
    other = copy.deepcopy(patched)
    for p in other.parameters():
        nn.init.normal_(p, 0.1, 0.2)
    inputs = batches(x, 2)
    with use_backend("cpu"):
        expected = [steps(block, inputs, replayed=False) for block in (patched, other)]
        got = [steps(block, inputs, replayed=True) for block in (patched, other)]
    assert len(programs()) == 2
    for want, have in zip(chain(*expected), chain(*got), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(want, have, strict=True))


def test_what_decides_is_part_of_the_key() -> None:
    """Shape, layout, alignment, settings, backends; and what was decided is forgotten when asked to."""
    _, patched, x = pair("torchvision", torch.float32)
    dy = torch.randn_like(x)

    def twice(x: Tensor, dy: Tensor) -> None:
        for _ in range(2):
            step(patched, x, dy)

    with use_backend("cpu"):
        step(patched, x, dy)
        # A first call may be the only one, and recording takes longer.
        assert not programs()
        step(patched, x, dy)
        assert len(programs()) == 2
        step(patched, x, dy)
        assert len(programs()) == 2
        twice(x[:2], dy[:2])
        assert len(programs()) == 4
        memory = torch.empty(x.numel() + 1)
        twice(memory[1:].view_as(x).copy_(x), dy)
        assert len(programs()) > 4
        count = len(programs())
        for bn in (m for m in patched.modules() if isinstance(m, nn.BatchNorm2d)):
            bn.eps = 2e-3
        twice(x, dy)
        assert len(programs()) > count
    with use_backend("reference"):
        twice(x, dy)
        count = len(programs())
    with use_backend("cpu"):
        dispatch.forget_choices()
        twice(x, dy)
        assert len(programs()) == count + 2
        tuning.forget()
        twice(x, dy)
        assert len(programs()) == count + 4


def test_arguments_that_share_memory_are_never_recorded() -> None:
    """Which of two the program reads could not be told; the next call's may be two tensors."""
    _, patched, x = pair("torchvision", torch.float32)
    tied = copy.deepcopy(patched)
    norms = [m for m in tied.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[0].bias = norms[0].weight
    inputs = batches(x)
    with use_backend("cpu"):
        expected = [steps(block, inputs, replayed=False) for block in (tied, patched)]
        got = [steps(tied, inputs, replayed=True)]
        assert sum(p is not None for p in programs()) <= 1
        got.append(steps(patched, inputs, replayed=True))
    for want, have in zip(chain(*expected), chain(*got), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(want, have, strict=True))


def test_a_value_read_back_is_not_recorded() -> None:
    def body(x: Tensor) -> Tensor:
        return x * float(x.sum())

    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(4)
        assert replay.repeat(body, (x,)).equal(body(x))
    assert programs() == [None]


def test_results_that_are_views_or_empty() -> None:
    def body(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        whole = x.new_empty(3, x.shape[0])
        torch.stack([x, y, x + y], out=whole)
        first, second, third = whole.unbind(0)
        y.add_(1)
        return first, second, third.view(2, 2), x.new_empty(0, dtype=torch.bfloat16), whole[1:, ::2]

    for _ in range(3):
        x, y = torch.randn(4), torch.randn(4)
        expected = body(x, y.clone())
        before = y.clone()
        got = replay.repeat(body, (x, y))
        for a, b in zip(expected, got, strict=True):
            assert a.equal(b) and (a.dtype, a.stride()) == (b.dtype, b.stride())
        assert y.equal(before + 1)
    assert len(programs()) == 1 and programs()[0] is not None
