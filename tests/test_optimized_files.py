"""Files of optimized models: the same bits on the other side, nothing trusted, nothing half-written."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, make_network
from patched_blocks import shake_batch_norms
from torch import Tensor, nn

import effnet_fast
from effnet_fast import EffnetFastError
from effnet_fast.data.images import Preset

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file

FP32, BF16 = torch.float32, torch.bfloat16
SHAPE = (1, 3, 32, 32)
PRESET = Preset(40, 32, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NAMES = tuple(f"name {i}" for i in range(10))


def optimized(name: str = "own", dtype: torch.dtype = FP32) -> Any:
    torch.manual_seed(2)
    return effnet_fast.optimize(make_network(name), SHAPE, dtype=dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "small.effnet"
    effnet_fast.save(optimized(), path, preset=PRESET, classes=NAMES)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_what_comes_back_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    """In either dtype, whichever it was saved in: files hold fp32."""
    model, path, x = optimized(name), tmp_path / "model.effnet", torch.randn(3, 3, 40, 33)
    effnet_fast.save(model, path)
    loaded = effnet_fast.load(path)
    assert torch.equal(loaded(x), model(x)) and repr(loaded) == repr(model)
    assert loaded.dtype == FP32 and loaded.preset is None and loaded.classes is None
    assert torch.equal(effnet_fast.load(path, dtype=BF16)(x), optimized(name, BF16)(x))


def test_a_file_of_a_model_in_bf16(tmp_path: Path, backend: str) -> None:
    model, path, x = optimized(dtype=BF16), tmp_path / "model.effnet", torch.randn(3, 3, 40, 33)
    effnet_fast.save(model, path)
    loaded = effnet_fast.load(path)
    assert loaded.dtype == BF16 and torch.equal(loaded(x), model(x))
    assert torch.equal(effnet_fast.load(path, dtype=FP32)(x), optimized()(x))


def test_preset_and_classes_travel_and_stay(saved: Path, tmp_path: Path) -> None:
    loaded = effnet_fast.load(saved)
    assert loaded.preset == PRESET and loaded.classes == NAMES
    effnet_fast.save(copy.deepcopy(loaded), tmp_path / "again", classes=NAMES[::-1])
    again = effnet_fast.load(tmp_path / "again")
    assert again.preset == PRESET and again.classes == NAMES[::-1]


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_layers_after_the_network(dtype: torch.dtype, tmp_path: Path) -> None:
    """MobileNetV3's hidden layer; what no file holds is named."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(3)
    stock = shake_batch_norms(torchvision.models.mobilenet_v3_small(num_classes=10)).eval()
    model, x = effnet_fast.optimize(stock, SHAPE, dtype=dtype), torch.randn(2, 3, 64, 64)
    effnet_fast.save(model, tmp_path / "model.effnet", classes=NAMES)
    loaded = effnet_fast.load(tmp_path / "model.effnet")
    assert torch.equal(loaded(x), model(x)) and repr(loaded) == repr(model) and loaded.classes == NAMES
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    stock.classifier.append(nn.LayerNorm(10).eval())
    with pytest.raises(EffnetFastError, match="save: model: a layer after the network .*LayerNorm"):
        effnet_fast.save(effnet_fast.optimize(stock, SHAPE), tmp_path / "other.effnet")


def test_attributes_that_are_plain_come_along(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = effnet_fast.optimize(timm.create_model("efficientnet_lite0", num_classes=7).eval(), SHAPE)
    effnet_fast.save(model, tmp_path / "model.effnet")
    assert effnet_fast.load(tmp_path / "model.effnet").num_classes == model.num_classes == 7


def test_the_file_is_one_of_safetensors(saved: Path) -> None:
    """So that others can look into it."""
    tensors = load_file(saved)
    assert tensors["stem.weight"].shape[1:] == (3, 3, 3) and tensors["classifier.bias"].shape == (10,)
    assert {t.dtype for t in tensors.values()} == {FP32}


def test_a_loaded_model_does_not_need_its_file(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.effnet"
    path.write_bytes(saved.read_bytes())
    loaded, x = effnet_fast.load(path), torch.randn(2, 3, 32, 32)
    wanted = loaded(x)
    path.write_bytes(b"")
    effnet_fast.save(loaded, tmp_path / "again.effnet")
    assert torch.equal(effnet_fast.load(tmp_path / "again.effnet")(x), wanted)


def test_another_process_without_native_code(saved: Path) -> None:
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(SHAPE)
    program = (
        "import sys, torch, effnet_fast; m = effnet_fast.load(sys.argv[1]); assert m.backend == 'reference';"
        "print(m(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved)],
        env=os.environ | {"EFFNET_FAST_DISABLE_NATIVE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    got = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(got, effnet_fast.load(saved)(x), rtol=1e-4, atol=1e-4)


# --- damage: one sentence that names the file ---

Change = Callable[[dict[str, Tensor], Any], Any]


def _set(*place: Any) -> Change:
    """Write the last item into the record, at the place that the others lead to."""

    def change(tensors: dict[str, Tensor], record: Any) -> None:
        *way, key, value = place
        for step in way:
            record = record[step]
        record[key] = value

    return change


def _tensor(name: str, value: Tensor) -> Change:
    return lambda tensors, record: tensors.update({name: value})


NETWORK = ("network",)
DAMAGE: dict[str, tuple[Change, str]] = {
    "another format": (_set("format", 2), "format 2, this version reads format 1"),
    "no format": (lambda tensors, record: record.pop("format"), "format: .* got nothing"),
    "a list": (lambda tensors, record: [record], "expected an object, got list"),
    "a tensor is missing": (lambda tensors, record: tensors.pop("stem.bias"), "stem.bias is missing"),
    "a tensor too many": (_tensor("stem.more", torch.ones(1)), "belong to nothing: stem.more"),
    "another dtype": (
        _tensor("stem.bias", torch.ones(8).half()),
        "stem.bias: expected float32 with 1 dimensions, got torch.float16",
    ),
    "another rank": (
        _tensor("stem.weight", torch.ones(8, 27)),
        "stem.weight: expected float32 with 4 dimensions, got",
    ),
    "a short bias": (_tensor("stem.bias", torch.ones(3)), "damaged"),
    "too few channels": (_tensor("stem.weight", torch.ones(4, 3, 3, 3)), "damaged"),
    "stride 0": (_set(*NETWORK, "stem", "stride", 0), "stem: stride|network.stem: stride"),
    "stride true": (_set(*NETWORK, "stem", "stride", True), "stride: expected another int, got True"),
    "a huge stride": (_set(*NETWORK, "stem", "stride", 10**30), "stride"),
    "negative padding": (_set(*NETWORK, "stem", "padding", [0, 0, 0, -1]), "padding"),
    "padding of a kind": (_set(*NETWORK, "stem", "padding", "valid"), "padding: .* got 'valid'"),
    "groups": (_set(*NETWORK, "blocks", 0, "depthwise", "groups", 2), "damaged"),
    "an activation": (_set(*NETWORK, "stem", "act", "__import__"), "act: .* got '__import__'"),
    "a block that is none": (_set(*NETWORK, "blocks", 0, None), "blocks.0: expected an object, got NoneType"),
    "blocks that are none": (_set(*NETWORK, "blocks", 3), "blocks: expected another list"),
    "a residual too many": (_set(*NETWORK, "blocks", 1, "residual", True), "damaged"),
    "no pooling": (_set(*NETWORK, "pool", 1), "pool: expected another bool"),
    "a dtype": (_set("dtype", "float64"), "dtype: .* got 'float64'"),
    "a tail": (_set("tail", ["softmax"]), "tail.0: expected linear, .* got 'softmax'"),
    "a tail without weights": (_set("tail", ["linear"]), "tail.0.weight is missing"),
    "a fact": (_set("facts", "forward", "x"), "facts: forward"),
    "a preset": (_set("preset", {"resize": 1}), "preset: crop"),
    "an interpolation": (_set("preset", "interpolation", "exec"), "interpolation"),
    "a std of zero": (_set("preset", "std", [1, 0, 1]), "std"),
    "a mean that is no number": (_set("preset", "mean", [1, 2, float("nan")]), "mean"),
    "classes that are no names": (_set("classes", list(range(10))), "classes: expected names"),
    "other classes": (_set("classes", ["a"]), "expected 10 names, as many as outputs, got 1"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_nothing_in_a_file_is_trusted(kind: str, saved: Path, tmp_path: Path, backend: str) -> None:
    from safetensors import safe_open

    change, message = DAMAGE[kind]
    with safe_open(saved, framework="pt") as file:
        record = json.loads(file.metadata()["effnet_fast"])
    tensors = load_file(saved)
    replaced = change(tensors, record)
    record = replaced if isinstance(replaced, list) else record
    path = tmp_path / "changed.effnet"
    save_file(tensors, path, metadata={"effnet_fast": json.dumps(record)})
    with pytest.raises(EffnetFastError, match=message) as caught:
        effnet_fast.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 7, 8, 100, 3000, -1])
def test_a_file_cut_short(left: int, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.effnet"
    path.write_bytes(saved.read_bytes()[:left])
    with pytest.raises(EffnetFastError, match=r"load: .*short.effnet") as caught:
        effnet_fast.load(path)
    assert "\n" not in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth")
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "json", metadata={"effnet_fast": "[" * 100_000})
    for name, message in (
        ("weights.safetensors", "was not written by effnet_fast.save"),
        ("weights.pth", "damaged or no file of effnet_fast.save"),
        ("folder", "cannot be read"),
        ("nowhere", "cannot be read"),
        ("json", "damaged or no file"),
    ):
        with pytest.raises(EffnetFastError, match=message) as caught:
            effnet_fast.load(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_arguments(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EffnetFastError, match="device: expected cpu, .* got cuda"):
        effnet_fast.load(saved, device="cuda")
    with pytest.raises(EffnetFastError, match=r"dtype: expected .* got torch.float16"):
        effnet_fast.load(saved, dtype=torch.float16)
    with pytest.raises(EffnetFastError, match=r"save: model: expected .* got Linear"):
        effnet_fast.save(nn.Linear(1, 1), tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(EffnetFastError, match="save: classes: expected 10 names"):
        effnet_fast.save(optimized(), tmp_path / "x", classes=["a"])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EffnetFastError, match="save: cannot write"):
        effnet_fast.save(optimized(), tmp_path / "x.effnet")


def test_nothing_is_left_half_written(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.effnet"
    path.write_bytes(saved.read_bytes())

    def failing(tensors: Any, name: Path, metadata: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", failing)
    with pytest.raises(EffnetFastError, match="save: cannot write .*: No space left on device"):
        effnet_fast.save(optimized(), path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == saved.read_bytes()


def test_readers_see_the_old_file_or_the_new_one(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.effnet"
    path.write_bytes(saved.read_bytes())
    model, stop, wrong = effnet_fast.load(saved), threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            effnet_fast.save(model, path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            try:
                effnet_fast.load(path)
            except EffnetFastError as error:
                wrong.append(str(error))
    finally:
        stop.set()
        writer.join()
    assert not wrong
