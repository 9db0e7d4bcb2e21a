"""Installing: wheels without torch, building later into the cache, refused and missing libraries, clean imports."""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from environments import ISOLATED, ROOT, SITE_PACKAGES, copy_sources, make_environment, run

from effnet_fast import build
from effnet_fast.backend import native
from effnet_fast.build import driver
from effnet_fast.system import environment


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without anything built."""
    return copy_sources(tmp_path_factory.mktemp("checkout") / "effnet_fast_sources")


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds in isolation, where torch cannot be imported."""
    folder = tmp_path_factory.mktemp("isolated")
    python = make_environment(folder / "venv", ISOLATED)
    assert run([python, "-c", "import torch"], folder).returncode != 0
    done = run(
        [python, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, checkout],
        folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which that wheel is installed, with this environment's torch beside it."""
    folder = tmp_path_factory.mktemp("installed")
    python = make_environment(folder / "venv", ISOLATED)
    done = run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = (folder / "venv").glob("lib/python3*/site-packages")
    # A path line does not read the other folder's .pth files: the editable install there stays out.
    (site / "torch_from_outside.pth").write_text(f"{SITE_PACKAGES}\n")
    return python


def test_wheel_without_torch_is_pure_and_carries_the_sources(wheel: Path) -> None:
    assert wheel.name == f"effnet_fast-{build.version()}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("effnet_fast/lib/build.json"))
    sources = {
        f"effnet_fast/sources/{file.relative_to(ROOT).as_posix()}" for file in driver.source_files(ROOT)
    }
    assert "effnet_fast/sources/csrc/cuda/register.cpp" in sources
    assert sources <= names
    assert {"effnet_fast/kernels/__init__.py", "effnet_fast/py.typed"} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith(("tests/", "kernels/"))]
    assert manifest["products"] == {}
    assert "torch is not importable" in manifest["missing"]["_ops"]["reason"]


def test_every_package_is_listed() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    inits = [*ROOT.glob("effnet_fast/**/__init__.py"), *ROOT.glob("kernels/**/__init__.py")]
    names = {".".join(init.parent.relative_to(ROOT).parts) for init in inits}
    assert listed == {re.sub(r"^kernels\b", "effnet_fast.kernels", name) for name in names}


def test_installed_without_native_code_says_what_is_missing(installed: Path, tmp_path: Path) -> None:
    code = "from effnet_fast.backend import native; print(native.available('_ops')); print(native.__file__)"
    done = run([installed, "-c", code], tmp_path, EFFNET_FAST_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    answer, path = done.stdout.splitlines()
    assert "site-packages" in path
    # What was in the way while installing, torch, is there now.
    assert answer == "(False, 'not built yet, every tool is here; to add it: effnet-fast build')"


def test_an_old_setuptools_is_refused_in_one_sentence(tmp_path: Path) -> None:
    code = f"import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path({str(ROOT / 'setup.py')!r})"
    done = run([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "effnet_fast: expected setuptools >= 77 to build with, got 65.5.0; run: pip install 'setuptools>=77'\n"
    )


def test_nothing_stale_enters_a_wheel(checkout: Path, tmp_path: Path) -> None:
    """What an earlier build left in build/ stays out, where libraries are built (here: fail to) as where none are."""
    root = tmp_path / "root"
    shutil.copytree(checkout, root)
    platform_folder = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for folder in ("lib", platform_folder):
        stale = root / "build" / folder / "effnet_fast" / "lib" / "_cuda.so"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.touch()
        (stale.parent.parent / "gone.py").touch()
    for compiler, tag in (
        ("/bin/false", sysconfig.get_platform().replace("-", "_")),
        ("/nonexistent", "any"),
    ):
        pip = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-build-isolation",
            "--no-deps",
            "-w",
            tmp_path,
            root,
        ]
        done = run(pip, tmp_path, CXX=compiler, EFFNET_FAST_SKIP_CUDA="1")
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = tmp_path.glob(f"*{tag}.whl")
        names = zipfile.ZipFile(wheel).namelist()
        assert "effnet_fast/lib/build.json" in names
        assert not [name for name in names if name.endswith((".so", "gone.py"))]


def test_build_later_into_the_cache(installed: Path, tmp_path: Path) -> None:
    """All of `_ops` and `_C` compiled from the sources in the wheel, then used; another Python would not see them."""
    cache = {"EFFNET_FAST_CACHE": str(tmp_path / "cache")}
    done = run([installed, "-m", "effnet_fast.build", "_ops", "_C"], tmp_path, **cache)
    assert done.returncode == 0, done.stdout + done.stderr
    code = (
        "import torch; from effnet_fast.backend import native;"
        "x = torch.ones(1, 3, 4, 4).to(memory_format=torch.channels_last);"
        "y, *_ = native.ops().depthwise_forward(x, torch.ones(3, 1, 3, 3), 1, [1] * 4, None, None, 0, None, None, 0, False, False, -1);"
        "print(native.status('_ops').path, y[0, 0, 1, 1].item(), native.host().build_info()['version'])"
    )
    done = run([installed, "-c", code], tmp_path, **cache)
    assert done.returncode == 0, done.stderr
    path, value, version = done.stdout.split()
    assert Path(path).is_relative_to(tmp_path / "cache")
    assert (value, version) == ("9.0", build.version())


def test_native_libraries_load() -> None:
    """What `make build` made for this checkout is there and fits the sources."""
    for product in build.PRODUCTS:
        expected = native.torch.version.cuda is not None or product != "_cuda"
        assert native.available(product)[0] == expected, native.available(product)
    assert native.host().build_info()["version"] == build.version()
    assert native.host().cpu_features()["architecture"] in ("x86_64", "arm64", "other")


def test_library_of_other_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EFFNET_FAST_ALLOW_STALE", raising=False)
    (tmp_path / "_ops.so").write_bytes(b"never opened")
    entry = {"file": "_ops.so", "sources": "0123456789ab"}
    (tmp_path / build.MANIFEST).write_text(json.dumps({"products": {"_ops": entry}, "missing": {}}))
    monkeypatch.setattr(build, "library_folders", lambda root: [tmp_path])
    state = native.find("_ops")
    assert state.path is None
    assert state.reason.startswith("_ops.so was built from other sources (0123456789ab, now ")
    assert state.fix == "effnet-fast build"
    monkeypatch.setenv("EFFNET_FAST_ALLOW_STALE", "1")
    assert native.find("_ops").path == tmp_path / "_ops.so"


@pytest.mark.parametrize("text", ["", "[]", '{"products": 1}', "not json"])
def test_damaged_manifest_counts_as_nothing_built(tmp_path: Path, text: str) -> None:
    (tmp_path / build.MANIFEST).write_text(text)
    assert build.read_manifest(tmp_path) == {"products": {}, "missing": {}}


def test_a_part_that_fails_is_recorded_and_hinders_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    shutil.copytree(checkout, root)
    bindings = root / "csrc" / "bindings.cpp"
    good = bindings.read_text()
    bindings.write_text("#error broken on purpose\n" + good)
    out, work = tmp_path / "out", tmp_path / "work"

    manifest = build.build(root, out, work, ("_C",))
    assert "broken on purpose" in manifest["missing"]["_C"]["reason"]
    assert manifest == build.read_manifest(out)
    monkeypatch.setenv("EFFNET_FAST_FORCE_BUILD", "1")
    with pytest.raises(build.BuildError, match=r"_C: build failed: .*broken on purpose"):
        build.build(root, out, work, ("_C",))

    bindings.write_text(good)
    manifest = build.build(root, out, work, ("_C",))
    assert manifest["missing"] == {}
    assert manifest["products"]["_C"]["sources"] == build.source_hash(root, "_C")
    assert (out / manifest["products"]["_C"]["file"]).is_file()
    assert [path.name for path in out.iterdir() if path.name.endswith(".part")] == []


def test_skipping(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNET_FAST_SKIP_BUILD", "1")
    manifest = build.build(checkout, tmp_path / "out", tmp_path / "work")
    assert manifest["products"] == {}
    assert {entry["reason"] for entry in manifest["missing"].values()} == {"EFFNET_FAST_SKIP_BUILD is set"}


def test_environment_report_is_plain_data() -> None:
    report = environment.collect(with_devices=False)
    assert json.loads(json.dumps(report)) == report
    assert report["effnet_fast"]["version"] == build.version()
    assert set(build.PRODUCTS) <= set(report["native"])
    for entry in report["missing"]:
        assert entry["reason"]
