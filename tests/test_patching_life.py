"""Patched models live on: copies, compilation, tracing, autocast, degenerate batches."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from patched_blocks import (
    pair,
    shake_batch_norms,
    torchvision_block,
)
from torch import nn

import effnet_fast
from effnet_fast import EffnetFastError, use_backend


def test_filter_and_unpatch() -> None:
    model = nn.Sequential(torchvision_block(), torchvision_block())
    kinds = [type(m) for m in model]
    assert effnet_fast.patch(model, filter_fn=lambda block, name: name == "1") is model
    assert [type(m) is k for m, k in zip(model, kinds, strict=True)] == [True, False]
    assert [row.reason == "not patched" for row in effnet_fast.report(model).rows][0]
    once = type(model[1])
    effnet_fast.patch(effnet_fast.patch(model))
    assert type(model[1]) is once and isinstance(model[0], kinds[0])
    assert effnet_fast.unpatch(model) is model
    assert [type(m) for m in model] == kinds


@pytest.mark.parametrize("argument", ["a path", None, 3])
def test_not_a_model(argument: object) -> None:
    for function in (effnet_fast.patch, effnet_fast.report):
        with pytest.raises(EffnetFastError, match=r"model: expected a torch\.nn\.Module, got"):
            function(argument)


def _save_and_load(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": _save_and_load,
    "data-parallel-replica": lambda m: m._replicate_for_data_parallel(),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["torchvision", "own", "efficientnet_pytorch"])
def test_copies_stay_patched_and_keep_their_own_weights(how: str, name: str) -> None:
    _, patched, x = pair(name)
    patched.eval()
    with use_backend("reference"):
        expected = patched(x)
        other = COPIES[how](patched)
        assert type(other) is type(patched)
        torch.testing.assert_close(other(x), expected)
        if how != "data-parallel-replica":
            with torch.no_grad():
                next(other.parameters()).zero_()
            torch.testing.assert_close(patched(x), expected)


def test_state_dict_and_repr_stay() -> None:
    stock, patched, _ = pair("torchvision")
    assert list(stock.state_dict()) == list(patched.state_dict())
    stock.load_state_dict(patched.state_dict(), strict=True)
    assert "MBConv[effnet_fast](" in repr(patched)
    assert [n for n, _ in stock.named_parameters()] == [n for n, _ in patched.named_parameters()]


def test_replaced_submodules_are_seen() -> None:
    _, patched, x = pair("torchvision")
    patched.eval()
    with use_backend("reference"):
        patched.block[2] = shake_batch_norms(copy.deepcopy(patched.block[2]))
        nn.init.zeros_(patched.block[2].fc2.weight)
        nn.init.constant_(patched.block[2].fc2.bias, 30.0)  # gate = 1
        opened = patched(x)
        del patched.block[2]
        torch.testing.assert_close(patched(x), opened)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
@pytest.mark.parametrize("mode", ["train", "eval", "no-grad"])
def test_compile_fullgraph(layout: torch.memory_format, mode: str) -> None:
    _, patched, x = pair("torchvision")
    patched.train(mode == "train")
    x = x.contiguous(memory_format=layout)
    with use_backend("reference"), torch.set_grad_enabled(mode != "no-grad"):
        expected = copy.deepcopy(patched)
        compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
        torch.manual_seed(5)
        want = expected(x)
        torch.manual_seed(5)
        got = compiled(x)
        torch.testing.assert_close(got, want)
        if mode != "no-grad":
            want.sum().backward()
            got.sum().backward()
            for p, q in zip(expected.parameters(), patched.parameters(), strict=True):
                torch.testing.assert_close(q.grad, p.grad)
        for p, q in zip(expected.buffers(), patched.buffers(), strict=True):
            torch.testing.assert_close(q, p)


def test_inductor() -> None:
    _, patched, x = pair("torchvision", torch.float32)
    patched.eval()
    with use_backend("reference"), torch.no_grad():
        torch.testing.assert_close(
            torch.compile(patched, fullgraph=True)(x), patched(x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["export", "trace", "script", "fx"])
def test_other_program_forms_record_the_stock_block(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # TorchScript cannot compile the Python functions that poison memory.
    monkeypatch.undo()
    stock, patched, x = pair("torchvision", torch.float32)
    stock.eval()
    patched.eval()
    with use_backend("reference"), torch.no_grad():
        if how == "export":
            program = torch.export.export(patched, (x,)).module()
        elif how == "trace":
            program = torch.jit.trace(patched, x)
        elif how == "script":
            program = torch.jit.script(patched)
        else:
            program = torch.fx.symbolic_trace(patched)
        torch.testing.assert_close(program(x), stock(x))
        text = str(program.code) if hasattr(program, "code") else str(program)
        assert "effnet_fast" not in text or how == "export"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["torchvision", "own", "timm", "timm-separable", "efficientnet_pytorch"])
def test_scripting_leaves_the_model_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    stock, patched, x = pair(name, torch.float32)
    model, other = nn.Sequential(patched).eval(), nn.Sequential(stock).eval()
    kinds = [type(m) for m in model.modules()]
    model(x)
    try:
        program = torch.jit.script(model)
    except Exception:
        # The library's own block is none for TorchScript.
        with pytest.raises(Exception, match="."):
            torch.jit.script(other)
    else:
        torch.testing.assert_close(program(x), other(x))
        buffer = io.BytesIO()
        torch.jit.save(program, buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.jit.load(buffer)(x), other(x))
    assert [type(m) for m in model.modules()] == kinds
    with use_backend("reference"):
        assert effnet_fast.report(model).fused == 1
        torch.testing.assert_close(model(x), other(x))
        assert effnet_fast.report(_save_and_load(model)).fused == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_computes_in_its_dtype_and_keeps_parameters_wide(dtype: torch.dtype) -> None:
    stock, patched, x = pair("torchvision", torch.float32)
    with use_backend("reference"), torch.autocast("cpu", dtype=dtype):
        torch.manual_seed(2)
        expected = stock(x)
        torch.manual_seed(2)
        got = patched(x)
    assert got.dtype == expected.dtype == dtype
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.05, atol=0.1)
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in patched.parameters())
    assert patched.block[0][1].running_mean.dtype == torch.float32
    torch.testing.assert_close(
        patched.block[0][1].running_mean, stock.block[0][1].running_mean, rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("shape", [(0, 8, 5, 5), (1, 8, 1, 1)], ids=["empty", "one-value"])
def test_degenerate_batches_behave_as_torch(shape: tuple[int, ...]) -> None:
    stock, patched, _ = pair("torchvision", torch.float32)
    x = torch.randn(shape)

    def outcome(block: nn.Module) -> object:
        try:
            return block(x).shape
        except ValueError as error:
            return str(error)

    with use_backend("reference"):
        assert outcome(stock) == outcome(patched)
        for p, q in zip(stock.buffers(), patched.buffers(), strict=True):
            torch.testing.assert_close(q, p)


def test_inputs_and_gradients_are_never_written() -> None:
    _, patched, x = pair("torchvision")
    kept = x.clone()
    leaf = x.requires_grad_()
    with use_backend("reference"):
        y = patched(leaf)
        dy = torch.randn_like(y)
        kept_dy = dy.clone()
        y.backward(dy)
    assert torch.equal(x.detach(), kept) and torch.equal(dy, kept_dy)


def test_data_assignment_is_seen() -> None:
    """No affine is cached: weights written behind autograd's back (EMA, quantization tools) count at once."""
    stock, patched, x = pair("torchvision")
    stock.eval()
    patched.eval()
    with use_backend("reference"), torch.no_grad():
        patched(x)
        for block in (stock, patched):
            block.block[0][1].weight.data.mul_(2)
            block.block[0][1].running_var.data.mul_(3)
        torch.testing.assert_close(patched(x), stock(x))
