"""What goes wrong in one place stays there: out of memory, an exception in a thread, a fork, a library of another ABI."""

import copy
import os
import signal
import threading
import time

import pytest
import torch
from patched_blocks import torchvision_block
from torch import Tensor, nn

import effnet_fast
from effnet_fast import dispatch, use_backend
from effnet_fast.backend import native


def block() -> nn.Module:
    torch.manual_seed(0)
    return effnet_fast.patch(torchvision_block(p=0.0))


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def fail_at(monkeypatch: pytest.MonkeyPatch, kernel: int) -> list[str]:
    """The kernel of this number runs out of memory; returns the names of those that were asked for."""
    asked: list[str] = []
    choose = dispatch.choose

    def failing(op, *args, **facts):
        choice = choose(op, *args, **facts)

        def run(*arguments, **options):
            asked.append(op)
            if len(asked) - 1 == kernel:
                raise torch.OutOfMemoryError(f"out of memory in {op}")
            return choice.function(*arguments, **options)

        return choice._replace(function=run)

    monkeypatch.setattr(dispatch, "choose", failing)
    return asked


@pytest.mark.parametrize("kernel", range(17))
def test_out_of_memory_in_any_kernel_of_a_training_step_leaves_the_next_one_right(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with stock modules a BatchNorm may have counted the batch; each has moved mean, variance and counter, or none."""
    model, x = block(), torch.randn(2, 8, 9, 9)
    before = copy.deepcopy(model)
    with use_backend("reference"):
        after = step(copy.deepcopy(model), x)
        with monkeypatch.context() as patch:
            asked = fail_at(patch, kernel)
            with pytest.raises(torch.OutOfMemoryError, match="out of memory in"):
                step(model, x)
        assert len(asked) == kernel + 1
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
        for norm, old in zip(model.modules(), before.modules(), strict=True):
            if isinstance(norm, nn.BatchNorm2d):
                moved = norm.num_batches_tracked.item() - old.num_batches_tracked.item()
                assert moved in (0, 1)
                assert torch.equal(norm.running_mean, old.running_mean) is (moved == 0)
                assert torch.equal(norm.running_var, old.running_var) is (moved == 0)
        model.load_state_dict(before.state_dict())
        assert_same(step(model, x), after)


def test_an_allocation_that_fails_says_so_and_the_next_call_works() -> None:
    model, x = block().eval(), torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        expected = model(x)
        # More bytes than an address has room for.
        with pytest.raises((RuntimeError, MemoryError), match="(?i)memory|allocate|size"):
            model(torch.zeros(1, 8, 1, 1).expand(1 << 20, 8, 1 << 12, 1 << 12))
        assert torch.equal(model(x), expected)


def test_an_exception_in_one_thread_stays_there() -> None:
    model, images = block().eval(), torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        expected = model(images)
    wrong: list[str] = []
    refused: list[str] = []

    def right() -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(model(images), expected):
                    wrong.append("another value")

    def bad() -> None:
        with torch.no_grad():
            for _ in range(20):
                try:
                    model(images[:, :3])
                except Exception as error:
                    refused.append(str(error))

    threads = [threading.Thread(target=target) for target in (right, bad, right)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and len(refused) == 20


def test_a_fork_after_threads_have_run_computes_in_one_thread() -> None:
    """As workers of data loaders do. With more, GNU OpenMP waits for the parent's threads, under PyTorch's own modules too."""
    model, x = block().eval(), torch.randn(4, 8, 33, 33)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = model(x)
            child = os.fork()
            if child == 0:
                # No assertion, no cleanup of pytest's: the exit code tells.
                torch.set_num_threads(1)
                same = torch.allclose(model(x), expected, atol=1e-5)
                os._exit(0 if same else 1)
        deadline, done = time.monotonic() + 120, (0, 0)
        while done[0] == 0 and time.monotonic() < deadline:
            done = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        if done[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert done == (child, 0)
    finally:
        torch.set_num_threads(threads)


def test_a_library_that_cannot_be_loaded_is_a_reason_not_an_error(tmp_path, monkeypatch) -> None:
    """As after an update of torch, or where the file was cut."""
    broken = tmp_path / "_ops.so"
    broken.write_bytes(b"\x7fELF" + bytes(64))
    found = native.Status(False, broken, "", "", {})
    monkeypatch.setattr(native, "find", lambda product: found)
    monkeypatch.setattr(native, "_registered", list)
    state = native._status.__wrapped__("_ops")
    assert not state.loaded and state.reason.startswith(f"cannot load {broken}: ") and state.fix
