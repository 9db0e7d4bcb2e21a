"""The command line: results as text and JSON, and bad input as one line and exit code 2."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from terminal import Terminal

import effnet_fast
from effnet_fast import cli
from effnet_fast.backend import native
from effnet_fast.cli import main
from effnet_fast.cli.classify import summary, top_classes
from effnet_fast.cli.output import Output
from effnet_fast.data import labels

Result = tuple[int, str, str]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs ``effnet-fast ...``: exit code, stdout, stderr."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "photo.png"
    image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """B0 with five classes, random weights."""
    path = tmp_path_factory.mktemp("weights") / "five.pth"
    torch.manual_seed(0)
    torch.save({"state_dict": effnet_fast.b0(num_classes=5).state_dict()}, path)
    return path


def assert_refused(result: Result, *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("effnet-fast: error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err


# --- models, info, build ---


def test_models_table(command: Callable[..., Result]) -> None:
    code, out, err = command("models")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines()[2:10]}
    assert rows["b0"] == ["b0", "224", "16", "1280", "0.2", "5.29", "M", "0.39", "G"]
    assert rows["b7"] == ["b7", "600", "55", "2560", "0.5", "66.35", "M", "37.75", "G"]
    stage = next(line.split() for line in out.splitlines() if line.startswith("stage5"))
    assert stage[:7] == ["stage5", "5x5", "6", "1", "3", "x", "112"]
    assert stage[-3:] == ["10", "x", "224"]


def test_models_json_is_the_python_result(command: Callable[..., Result]) -> None:
    from effnet_fast.models import summarize

    code, out, _ = command("models", "b3", "--resolution", 64, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(summarize("b3", 64).as_dict()))
    everything = json.loads(command("models", "--json")[1])
    assert [row["name"] for row in everything] == effnet_fast.list_models()


def test_models_stages(command: Callable[..., Result]) -> None:
    code, out, _ = command("models", "EfficientNet-B0")
    assert code == 0
    assert "stage3         5x5       6       2        2        40    28" in out


def test_info(command: Callable[..., Result]) -> None:
    code, out, err = command("info", "--no-devices")
    assert (code, err) == (0, "")
    assert f"effnet-fast {effnet_fast.__version__}" in out
    assert torch.__version__.split("+")[0] in out
    for title in ("system", "packages", "native libraries", "build tools", "backends for fp32 on cpu"):
        assert title in out
    (row,) = [line for line in out.splitlines() if line.startswith("depthwise ")]
    answers = effnet_fast.backends("cpu")["depthwise"]
    assert row.split() == ["depthwise", *("yes" if answer == "ok" else "no" for answer in answers.values())]
    for backend, answer in answers.items():
        assert answer == "ok" or f"{backend}: {answer}" in out


def test_info_json(command: Callable[..., Result]) -> None:
    report = json.loads(command("info", "--no-devices", "--json")[1])
    assert report["packages"]["torch"] == torch.__version__.split("+")[0]
    assert report["backends"]["cpu"]["depthwise"]["reference"] == "ok"
    if native.available("_ops")[0]:
        assert report["native"]["cpu_isa"] == native.cpu_isa()
    assert "devices" not in report


def test_info_names_what_is_missing_and_the_command(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [{"what": "CPU kernels", "reason": "no C++ compiler", "command": "apt install g++"}]
    monkeypatch.setattr(cli.info.environment, "missing", lambda report: missing)
    out = command("info", "--no-devices")[1]
    assert "CPU kernels: no C++ compiler\n    add it with: apt install g++" in out


def test_build_json(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from effnet_fast import build

    manifest = {"products": {"_C": {"file": "_C.so"}}, "missing": {}}
    asked = []

    def fake(root: Path, out: Path, work: Path, products: tuple[str, ...], verbose: bool) -> dict:
        asked.append(products)
        return manifest

    monkeypatch.setattr(build, "build", fake)
    monkeypatch.setattr(build, "source_root", lambda: tmp_path)
    monkeypatch.setattr(build, "output_folders", lambda root: (tmp_path, tmp_path / "work"))
    monkeypatch.setattr(build, "read_manifest", lambda folder: manifest)
    code, out, err = command("build", "_C", "--json")
    assert code == 0 and asked == [("_C",)]
    assert json.loads(out) == {"exit_code": 0, "folder": str(tmp_path), **manifest}
    assert "_C: built" in err


# --- classify ---


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
    monkeypatch.setattr(cli.classify, "_load", lambda *_: pytest.fail("the model was loaded"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:200])
    assert_refused(command("classify", broken, "--weights", checkpoint), str(broken), "cannot be read")
    absent = tmp_path / "absent.png"
    assert_refused(command("classify", absent, "--weights", checkpoint), "absent.png does not exist")
    code, out, err = command("classify", broken, absent, "--weights", checkpoint)
    assert (code, out, err.count("\n")) == (2, "", 3)
    assert str(broken) in err and str(absent) in err and "2 of 2 images" in err
    assert_refused(command("classify", checkpoint, "--weights", checkpoint), "is not an image")


def test_bad_weights_and_labels(
    command: Callable[..., Result], photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert_refused(command("classify", photo), "--weights is missing", "lite0")
    assert_refused(command("classify", photo, "--weights", "nowhere.pth"), "nowhere.pth does not exist")
    assert_refused(command("classify", photo, "--weights", photo), "not a readable checkpoint")
    assert_refused(
        command("classify", photo, "--weights", checkpoint, "--model", "b1"), "do not fit the model"
    )
    assert_refused(command("classify", photo, "--weights", checkpoint, "--model", "b9"), "unknown model 'b9'")
    assert_refused(command("classify", photo, "--weights", "lite0", "--model", "b1"), "lite0", "--model b1")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    assert_refused(command("classify", photo, "--weights", other), "classifier.1.bias")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    given = ("classify", photo, "--weights", checkpoint, "--labels")
    assert_refused(command(*given, names), "has 2 names, expected 5")
    assert_refused(command(*given, tmp_path / "none.txt"), "none.txt cannot be read")
    assert_refused(command(*given, photo), "not a text file")
    names.write_text("\n")
    assert_refused(command(*given, names), "is empty")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], ["bogus", "demo", "classify"]),
        (["models", "b9"], ["unknown model 'b9'"]),
        (["models", "--resolution", "0"], ["positive integer"]),
        (["models", "--nonsense"], ["unrecognized arguments: --nonsense"]),
        (["build", "everything"], ["unknown product 'everything'", "_ops"]),
        (["demo", "--rounds", "0"], ["--rounds", "positive integer"]),
        (["demo", "--device", "tpu"], ["--device", "tpu"]),
        (["demo", "--device", "cuda:"], ["--device", "cuda:"]),
        (["demo", "--device", "cuda:99"], ["cuda:99 is not on this machine"]),
        (["classify", "x.png", "--weights", "lite0", "--backend", "magic"], ["unknown backend 'magic'"]),
        (["classify", "x.png", "--weights", "lite0", "--dtype", "int8"], ["int8"]),
        (["classify"], ["IMAGE"]),
    ],
)
def test_bad_arguments(command: Callable[..., Result], arguments: list[str], words: list[str]) -> None:
    assert_refused(command(*arguments), *words)


def test_a_backend_that_cannot_run_is_refused(
    command: Callable[..., Result], photo: Path, checkpoint: Path
) -> None:
    given = ("classify", photo, "--weights", checkpoint, "--device", "cpu", "--backend", "cuda")
    assert_refused(command(*given), "no backend can run", "cuda:")


def test_missing_packages_name_the_command(
    command: Callable[..., Result],
    photo: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("effnet_fast.data.samples.find_spec", lambda name: None)
    assert_refused(command("demo"), "pip install pillow scikit-image scikit-learn efficientnet-lite-pytorch")
    given = ("classify", photo, "--weights", "lite0")
    assert_refused(command(*given), "pip install pillow efficientnet-lite-pytorch")

    real = builtins.__import__

    def without_pillow(name: str, *rest):  # type: ignore[no-untyped-def]
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    assert_refused(command("classify", photo, "--weights", checkpoint), "pip install pillow")


# --- the frame ---


def test_no_command_shows_the_help(command: Callable[..., Result]) -> None:
    code, out, err = command()
    assert (code, out) == (2, "") and "usage: effnet-fast" in err and "classify" in err


def test_version_and_help(command: Callable[..., Result]) -> None:
    assert command("--version") == (0, f"effnet-fast {effnet_fast.__version__}\n", "")
    for name in cli.COMMANDS:
        code, out, _ = command(name, "--help")
        assert code == 0 and "--json" in out


def test_interrupt(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.models, "run", interrupt)
    assert command("models") == (130, "", "effnet-fast: interrupted\n")


def run_module(*arguments: str, **options) -> subprocess.CompletedProcess:  # type: ignore[no-untyped-def]
    call = [sys.executable, "-m", "effnet_fast", *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.mark.slow
def test_as_a_module() -> None:
    done = run_module("models", "b0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parameters"] == 5288548
    done = run_module("models", "b9")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr


@pytest.mark.slow
def test_closed_pipe() -> None:
    command = f"set -o pipefail; {sys.executable} -m effnet_fast info --no-devices --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


@pytest.mark.parametrize("rich", [True, False])
def test_output_on_a_terminal(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen, errors = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", errors)
    output = Output(as_json=False)
    output.table(("name", "value"), [("[bold]x[/bold]", "1.5"), ("y", "10")], "title")
    output.line("a [markup] line")
    with output.progress("working", 2) as advance:
        advance()
        advance()
    text = screen.getvalue()
    # What looks like markup is shown as it is.
    assert "[bold]x[/bold]" in text and "a [markup] line" in text and "title" in text
    assert ("\x1b[" in text) == rich
    assert ("working" in errors.getvalue()) == rich


def test_numbers_are_aligned_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(("name", "ms"), [("a", "1.50"), ("b", "10.25"), ("c", "")])
    assert capsys.readouterr().out.splitlines() == [
        "name     ms",
        "----  -----",
        "a      1.50",
        "b     10.25",
        "c",
    ]


def test_json_prints_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.heading("h")
    output.line("l")
    output.table(("a",), [("b",)], "t")
    with output.progress("p", 1) as advance:
        advance()
    output.data({"x": 1})
    assert json.loads(capsys.readouterr().out) == {"x": 1}


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_tune_without_a_gpu_says_so(command: Callable[..., Result]) -> None:
    code, out, err = command("tune", "--model", "b0")
    assert code == 2 and not out
    assert err.startswith("effnet-fast: error: tune: ") and err.count("\n") == 1
