"""Optimized models in the lives of other programs: pickled, inside other modules, moved, cast, put into training."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import math
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from networks import make_network
from patched_blocks import shake_batch_norms, torchvision_block
from torch import Tensor, nn

import effnet_fast
from effnet_fast import EffnetFastError, use_backend
from effnet_fast.backend import native
from effnet_fast.backend.cpu import engine
from effnet_fast.backend.network import Block, Conv, Network, SqueezeExcite
from effnet_fast.inference import module

FP32, BF16 = torch.float32, torch.bfloat16
SHAPE = (1, 3, 32, 32)


@pytest.fixture(scope="module", params=[("cpu", FP32), ("cpu", BF16), ("reference", FP32)])
def optimized(request: pytest.FixtureRequest) -> nn.Module:
    backend, dtype = request.param
    ok, reason = native.available("_ops")
    if backend == "cpu" and not ok:
        pytest.skip(reason)
    torch.manual_seed(2)
    with use_backend(backend):
        return effnet_fast.optimize(make_network("own"), SHAPE, dtype=dtype)


def patched_copy() -> nn.Module:
    """A network of another kind, whose blocks are patched."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), torchvision_block(p=0.0), nn.Flatten()).eval()
    return effnet_fast.optimize(model, SHAPE)


def save_and_load(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_computes_the_same(optimized: nn.Module, protocol: int) -> None:
    x = torch.randn(3, 3, 40, 33)
    wanted = optimized(x)
    for other in (pickle.loads(pickle.dumps(optimized, protocol)), save_and_load(optimized)):
        assert torch.equal(other(x), wanted) and repr(other) == repr(optimized) and not other.training
    inside = pickle.loads(pickle.dumps(nn.Sequential(optimized, nn.Softmax(1)), protocol))
    assert torch.equal(inside(x), wanted.softmax(1))


def test_weights_only_is_refused_with_torchs_sentence(backend: str) -> None:
    buffer = io.BytesIO()
    torch.save(effnet_fast.optimize(make_network("timm-lite"), SHAPE), buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="effnet_fast"):
        torch.load(buffer, weights_only=True)


def test_workers_that_are_spawned() -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), SHAPE)
    x = torch.randn(2, 3, 32, 32)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply_async(optimized, (x,)).get(timeout=120), optimized(x))


def test_workers_of_joblib() -> None:
    """loky's processes, which get their arguments by cloudpickle."""
    joblib = pytest.importorskip("joblib")
    optimized = effnet_fast.optimize(make_network("timm-lite"), SHAPE)
    x = torch.randn(2, 3, 32, 32)
    results = joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(optimized)(x) for _ in range(2))
    assert all(torch.equal(y, optimized(x)) for y in results)


def test_workers_of_ray() -> None:
    ray = pytest.importorskip("ray")
    optimized = effnet_fast.optimize(make_network("timm-lite"), SHAPE)
    x = torch.randn(2, 3, 32, 32)
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        call = ray.remote(lambda model, x: model(x))
        assert torch.equal(ray.get(call.remote(ray.put(optimized), x)), optimized(x))
    finally:
        ray.shutdown()


#: Loads a program and its images, and says what it computes.
OTHER_END = """
import sys, pickle, torch
model, x, wanted = pickle.load(open(sys.argv[1], "rb"))
print((model(x) - wanted).abs().max().item() / wanted.abs().max().item())
"""


def elsewhere(path: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", OTHER_END, str(path)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_processors_with_other_instructions(dtype: torch.dtype, tmp_path) -> None:
    """What is packed there may be packed in another way, or not at all."""
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)
    optimized, x = effnet_fast.optimize(make_network("own"), SHAPE, dtype=dtype), torch.randn(2, 3, 40, 40)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((optimized, x, optimized(x))))
    done = elsewhere(path, EFFNET_FAST_CPU_ISA="baseline")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < (1e-4 if dtype == FP32 else 0.05)
    done = elsewhere(path, EFFNET_FAST_DISABLE_NATIVE="1")
    assert done.returncode == 0 and float(done.stdout) < (1e-4 if dtype == FP32 else 0.05), done.stderr


def test_pickles_of_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(effnet_fast.optimize(make_network("timm-lite"), SHAPE))
    monkeypatch.setattr(module, "FORMAT", 2)
    with pytest.raises(EffnetFastError, match="another version: expected format 2, got 1"):
        pickle.loads(data)


def test_what_a_user_hung_on_it_travels() -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), SHAPE)
    optimized.note, calls = "mine", []  # type: ignore[assignment]
    other = pickle.loads(pickle.dumps(optimized))
    assert other.note == "mine" and other.backend == optimized.backend
    other.register_forward_hook(lambda *_: calls.append(1))
    other(torch.randn(SHAPE))
    assert calls == [1]


def small_network() -> Network:
    """Every kind of record, with weights that fp32 and bf16 hold exactly."""
    made = itertools.count()

    def weight(*shape: int) -> Tensor:
        numbers = torch.arange(math.prod(shape), dtype=torch.int64).add(7 * next(made)) % 61
        return (numbers - 30).view(shape) / 64

    def conv(out: int, inputs: int, kernel: int, act: str, **options) -> Conv:
        return Conv(weight(out, inputs, kernel, kernel), weight(out), act=act, **options)

    gate = SqueezeExcite(weight(5, 56), weight(5), weight(56, 5), weight(56))
    stencil = conv(56, 1, 3, "silu", groups=56, padding=(1, 1, 1, 1))
    block = Block(conv(56, 20, 1, "silu"), stencil, gate, conv(24, 56, 1, "none"), False)
    plain = Block(
        None, conv(24, 1, 5, "relu6", groups=24, padding="same"), None, conv(24, 24, 1, "none"), False
    )
    head = conv(40, 24, 1, "relu")
    return Network(conv(20, 3, 3, "silu", stride=2), (block, plain), head, (weight(7, 40), weight(7)))


#: (format, what a small network is compiled to). Where this fails, raise ``kProgramFormat`` of csrc/cpu/engine/program.h
#: and note the new sums.
COMPILED = (3, "07ceb8ff8241bb5c", "9711d3f00ef29e46")


def test_the_format_has_its_number() -> None:
    ok, reason = native.available("_ops")
    if not ok:
        pytest.skip(reason)
    sums, formats = [], set()
    for dtype in (FP32, BF16):
        program = engine.compile_network(small_network(), dtype)
        digest = hashlib.sha256(program._records.numpy().tobytes() + program._weights.numpy().tobytes())
        sums.append(digest.hexdigest()[:16])
        formats.add(int(program._records[0]))
    assert (*formats, *sums) == COMPILED


class Student(nn.Module):
    """Distillation: a network that learns beside one that does not."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher, self.head = teacher, nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.teacher(x))


def test_inside_a_module_that_trains(optimized: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    wanted = optimized(x)
    student = Student(optimized)
    state = student.state_dict()
    assert list(state) == ["head.weight", "head.bias"]
    assert list(student.state_dict(prefix="a.")) == ["a.head.weight", "a.head.bias"]
    assert str(Student(optimized).load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    with pytest.raises(RuntimeError, match=r"Unexpected key.*teacher\.features"):
        student.load_state_dict(state | {"teacher.features.0.0.weight": torch.zeros(1)})
    # Modules that hold it go where they like.
    student.train().double().half().to("meta").requires_grad_(True)
    assert student.training and not optimized.training
    assert torch.equal(student.teacher(x), wanted) and torch.equal(copy.deepcopy(student).teacher(x), wanted)
    ema = torch.optim.swa_utils.AveragedModel(Student(optimized))
    assert sorted(ema.state_dict()) == ["module.head.bias", "module.head.weight", "n_averaged"]


def test_alone_it_has_no_state(optimized: nn.Module) -> None:
    with pytest.raises(EffnetFastError, match="has no state_dict"):
        optimized.state_dict()
    with pytest.raises(EffnetFastError, match="loads no state_dict"):
        optimized.load_state_dict({})


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "type": lambda m: m.type(torch.float64),
    "meta": lambda m: m.to("meta"),
    "to-empty": lambda m: m.to_empty(device="meta"),
    "dtype": lambda m: m.to(torch.float16),
    "like": lambda m: m.to(torch.zeros(1, dtype=torch.float16)),
    "dtype-and-layout": lambda m: m.to(torch.float16, memory_format=torch.channels_last),
    "train": lambda m: m.train(),
    "gradients": lambda m: m.requires_grad_(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_obeyed_is_refused(optimized: nn.Module, change: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    wanted = optimized(x)
    for model in (optimized, patched_copy()):
        with pytest.raises(
            EffnetFastError, match="an optimized model (stays in|only infers|has no gradients)"
        ):
            CHANGES[change](model)
        assert not model.training and not any(m.training for m in model.modules())
        assert not any(p.requires_grad or p.dtype != FP32 for p in model.parameters())
    assert torch.equal(optimized(x), wanted)


def test_other_dtypes_are_named(backend: str) -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), SHAPE)
    sentence = "stays in torch.float32 on cpu, for which it was made, got torch.bfloat16 on cpu"
    with pytest.raises(EffnetFastError, match=re.escape(sentence)):
        optimized.bfloat16()


@pytest.mark.parametrize("name", ["cuda", "xpu", "mtia"])
def test_other_devices_are_refused(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one: a module hands its tensors to the method of that name."""
    monkeypatch.setattr(torch.Tensor, name, lambda tensor, device=None: tensor.to("meta"))
    for model in (effnet_fast.optimize(make_network("timm-lite"), SHAPE), patched_copy()):
        with pytest.raises(
            EffnetFastError, match=r"stays in torch.float32 on cpu, .* got torch.float32 on meta"
        ):
            getattr(model, name)()
        assert model(torch.randn(SHAPE)).isfinite().all()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripting_is_refused(optimized: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    wanted = optimized(x)
    for model in (optimized, patched_copy(), nn.Sequential(optimized, nn.Softmax(1))):
        with pytest.raises(EffnetFastError, match="cannot be traced, scripted or exported"):
            torch.jit.script(model)
    assert torch.equal(optimized(x), wanted)


def test_it_is_reported_and_not_patched_again(backend: str) -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), SHAPE)
    holder = nn.Sequential(optimized, nn.Softmax(1))
    assert effnet_fast.report(optimized).rows == [("", "OptimizedModel", "fused", backend, "")]
    assert [row.name for row in effnet_fast.report(holder).rows] == ["0"]
    for model in (optimized, holder):
        with pytest.warns(UserWarning, match="patch: the model is optimized already"):
            assert effnet_fast.patch(model) is model


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_torchs_own_error(backend: str) -> None:
    optimized = effnet_fast.optimize(make_network("timm-lite"), SHAPE)
    with pytest.raises((AssertionError, RuntimeError)):
        optimized.cuda()


def test_what_changes_nothing_is_allowed() -> None:
    for model in (effnet_fast.optimize(make_network("timm-lite"), SHAPE), patched_copy()):
        x = torch.randn(2, 3, 32, 32)
        wanted = model(x)
        for same in (model.eval(), model.cpu(), model.float(), model.to("cpu"), model.to(torch.float32)):
            assert same is model
        assert model.to(memory_format=torch.channels_last).share_memory().train(False) is model
        assert torch.equal(model(x), wanted)


def test_a_patched_copy_in_a_module_that_is_cast() -> None:
    model = patched_copy()
    x = torch.randn(2, 3, 32, 32)
    wanted = model(x)
    holder = nn.Sequential(model, nn.Linear(7200, 2)).train().half()
    assert holder[1].weight.dtype == torch.float16 and not model.model[1].training
    assert torch.equal(model(x), wanted)
    shake_batch_norms(model.model)
    assert not torch.equal(pickle.loads(pickle.dumps(model))(x), wanted)
