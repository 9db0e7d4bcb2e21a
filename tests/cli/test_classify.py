"""classify: images, weights, labels and options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Result, assert_refused

import effnet_fast
from effnet_fast import cli
from effnet_fast.cli.classify import summary, top_classes
from effnet_fast.data import labels


def test_classify_with_a_checkpoint_of_five_classes(
    command: Callable[..., Result], photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\n\n")
    options = ("--model", "b0", "--weights", checkpoint, "--labels", names, "--top", 9, "--device", "cpu")
    code, out, _ = command("classify", photo, photo, *options, "--json")
    assert code == 0
    report = json.loads(out)
    assert [result["image"] for result in report["results"]] == [str(photo)] * 2
    predictions = report["results"][0]["predictions"]
    assert {p["label"] for p in predictions} == {"ant", "bee", "cat", "dog", "elk"}
    assert sum(p["probability"] for p in predictions) == pytest.approx(1)
    # On a CPU the whole network is one call: there are no blocks to report.
    assert report["blocks"] == [] and report["runs"].startswith("optimized (EfficientNet, 16 blocks, float32")

    model = effnet_fast.b0(num_classes=5, weights=checkpoint).eval()
    preset = effnet_fast.data.images.preset_for("b0")
    x = effnet_fast.data.images.normalize(effnet_fast.data.images.read_image(photo, preset)[None], preset)
    with torch.no_grad(), effnet_fast.use_backend("reference"):
        expected = model(x).softmax(1)[0]
    for p in predictions:
        assert p["probability"] == pytest.approx(expected[p["index"]].item(), abs=1e-4)


def test_classify_text_without_label_file(
    command: Callable[..., Result], photo: Path, checkpoint: Path
) -> None:
    code, out, err = command("classify", photo, "--weights", checkpoint, "--device", "cpu", "--top", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["image", "class", "probability"]
    assert lines[2].startswith(str(photo)) and " class " in lines[2]
    assert lines[-1].startswith("b0 on cpu in fp32: optimized (EfficientNet, 16 blocks, float32, ")
    assert len(lines) == 5


@pytest.mark.parametrize("options", [("--backend", "reference"), ("--dtype", "bf16"), ("--backend", "auto")])
def test_classify_options_reach_the_model(
    command: Callable[..., Result], photo: Path, checkpoint: Path, options: tuple[str, str]
) -> None:
    arguments = ("classify", photo, "--weights", checkpoint, "--device", "cpu", "--top", 5, "--json")
    plain, chosen = json.loads(command(*arguments)[1]), json.loads(command(*arguments, *options)[1])
    if options == ("--backend", "reference"):
        assert "PyTorch's convolutions" in chosen["runs"]
    assert chosen["dtype"] == ("bf16" if "bf16" in options else "fp32")
    exact = {p["index"]: p["probability"] for p in plain["results"][0]["predictions"]}
    for p in chosen["results"][0]["predictions"]:
        assert p["probability"] == pytest.approx(exact[p["index"]], abs=0.02 if "bf16" in options else 1e-4)


def test_images_that_cannot_be_read_do_not_stop_the_others(
    command: Callable[..., Result], photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    broken, absent = tmp_path / "broken.png", tmp_path / "absent.png"
    broken.write_bytes(photo.read_bytes()[:200])
    options = ("--weights", checkpoint, "--device", "cpu")
    alone = json.loads(command("classify", photo, *options, "--json")[1])
    given = ("classify", broken, photo, absent, photo, *options)
    code, out, err = command(*given, "--json")
    data = json.loads(out)
    assert code == 1 and alone["failed"] == []
    assert data["results"] == alone["results"] * 2
    assert [entry["image"] for entry in data["failed"]] == [str(broken), str(absent)]
    assert "cannot be read" in data["failed"][0]["error"] and "does not exist" in data["failed"][1]["error"]
    code, out, text_err = command(*given)
    assert code == 1 and out.count(str(photo)) == 2 and str(broken) not in out
    assert err == text_err
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("effnet-fast: error: ") for line in lines)
    assert str(broken) in lines[0] and str(absent) in lines[1] and "2 of 4 images" in lines[2]


def test_where_no_image_can_be_read_nothing_is_loaded(
    command: Callable[..., Result],
    photo: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli.network, "load", lambda *_: pytest.fail("the model was loaded"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:200])
    assert_refused(command("classify", broken, "--weights", checkpoint), str(broken), "cannot be read")
    absent = tmp_path / "absent.png"
    assert_refused(command("classify", absent, "--weights", checkpoint), "absent.png does not exist")
    code, out, err = command("classify", broken, absent, "--weights", checkpoint)
    assert (code, out, err.count("\n")) == (2, "", 3)
    assert str(broken) in err and str(absent) in err and "2 of 2 images" in err
    assert_refused(command("classify", checkpoint, "--weights", checkpoint), "is not an image")


def test_imagenet_classes() -> None:
    names = labels.imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[285], names[967], names[999]) == (
        "tench",
        "Egyptian cat",
        "espresso",
        "toilet tissue",
    )
    meta = pytest.importorskip("torchvision.models._meta")
    same = sum(a.lower() == b.lower() for a, b in zip(names, meta._IMAGENET_CATEGORIES, strict=True))
    assert same >= 990


def test_top_classes() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    first, second = top_classes(logits, ("a", "b", "c"), 2)
    assert [p["label"] for p in first] == ["b", "c"] and second[0]["index"] == 0
    assert first[0]["probability"] == pytest.approx(0.66524, abs=1e-5)
    assert len(top_classes(logits, ("a", "b", "c"), 9)[0]) == 3


def test_summary_gives_each_reason_once() -> None:
    from effnet_fast.patching import Report, ReportRow

    rows = [
        ReportRow("a", "B", "fused", "cpu", ""),
        *[ReportRow(n, "B", "eager", "", "a hook") for n in "bc"],
    ]
    assert summary(Report(rows)) == "1 of 3 blocks fused (cpu); 2 eager: a hook"


def test_optimize_writes_what_classify_reads(
    command: Callable[..., Result], photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    names, path = tmp_path / "names.txt", tmp_path / "five.effnet"
    names.write_text("ant\nbee\ncat\ndog\nelk\n")
    given = ("--weights", checkpoint, "--labels", names)
    code, out, err = command("optimize", *given, "--dtype", "bf16", "-o", path)
    assert (code, err) == (0, "") and str(path) in out and "16 blocks, bfloat16" in out
    direct = ("classify", photo, *given, "--dtype", "bf16", "--device", "cpu", "--json")
    wanted, got = (
        json.loads(command(*line)[1])
        for line in (direct, ("classify", photo, "--model", path, "--device", "cpu", "--json"))
    )
    assert got["results"] == wanted["results"] and got["dtype"] == "bf16" and got["runs"] == wanted["runs"]
    fp32 = json.loads(
        command("classify", photo, "--model", path, "--device", "cpu", "--dtype", "fp32", "--json")[1]
    )
    assert fp32["dtype"] == "fp32" and fp32["results"] != got["results"]
    assert {p["label"] for p in fp32["results"][0]["predictions"]} <= {"ant", "bee", "cat", "dog", "elk"}
    told = json.loads(command("optimize", *given, "-o", path, "--json")[1])
    assert told["bytes"] == path.stat().st_size and told["dtype"] == "fp32"


def test_files_of_optimized_models_that_do_not_fit(
    command: Callable[..., Result], photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    bare, names = tmp_path / "bare.effnet", tmp_path / "names.txt"
    model = effnet_fast.b0(num_classes=5, weights=checkpoint).eval()
    effnet_fast.save(effnet_fast.optimize(model, (1, 3, 32, 32)), bare)
    names.write_text("ant\n")
    use = ("classify", photo, "--device", "cpu", "--model")
    assert_refused(command(*use, bare), "bare.effnet does not say how photos become images")
    assert_refused(command(*use, tmp_path / "absent.effnet"), "load: ", "absent.effnet cannot be read")
    assert_refused(command(*use, bare, "--weights", checkpoint), "has its weights")
    assert_refused(command(*use, bare, "--dtype", "fp16"), "expected --dtype fp32 or bf16")
    assert_refused(command("optimize", "-o", tmp_path / "x.effnet"), "optimize: --weights is missing")
    given = ("optimize", "--weights", checkpoint)
    assert_refused(command(*given, "--labels", names, "-o", tmp_path / "x.effnet"), "1 names, expected 5")
    assert_refused(command(*given, "-o", tmp_path), "optimize: cannot write")
    assert not (tmp_path / "x.effnet").exists()
