"""Installing: wheels without torch, building later into the cache, refused and missing libraries, clean imports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from effnet_fast import build, environment, native
from effnet_fast.build import driver, toolchain

ROOT = Path(__file__).resolve().parent.parent
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
#: What pip's isolated build environment holds, and pip itself.
ISOLATED = ("pip", "setuptools", "_distutils_hack")


def run(command: list[str | Path], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("EFFNET_FAST_", "PYTHONPATH"))}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def make_environment(folder: Path, links: tuple[str, ...]) -> Path:
    """A virtual environment with some packages of this one, linked: no network. Returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(
        run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).stdout.strip()
    )
    # The metadata folders come along: setuptools finds its own commands through their entry points.
    for path in (found for name in links for found in SITE_PACKAGES.glob(f"{name}*")):
        if path.name in links or path.suffix == ".dist-info":
            (site / path.name).symlink_to(path)
    return python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without anything built."""
    target = tmp_path_factory.mktemp("checkout") / "effnet_fast_sources"
    ignore = shutil.ignore_patterns("__pycache__", "lib", "*.egg-info")
    for folder in ("effnet_fast", "kernels", "csrc", "cmake"):
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    for file in ("CMakeLists.txt", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / file).exists():
            shutil.copyfile(ROOT / file, target / file)
    return target


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
    code = "from effnet_fast import native; print(native.available('_ops')); print(native.__file__)"
    done = run([installed, "-c", code], tmp_path, EFFNET_FAST_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    answer, path = done.stdout.splitlines()
    assert "site-packages" in path
    assert answer.startswith(
        "(False, 'torch is not importable in the build environment; to add it: effnet-fast build"
    )


def test_build_later_into_the_cache(installed: Path, tmp_path: Path) -> None:
    """All of `_ops` and `_C` compiled from the sources in the wheel, then used; another Python would not see them."""
    cache = {"EFFNET_FAST_CACHE": str(tmp_path / "cache")}
    done = run([installed, "-m", "effnet_fast.build", "_ops", "_C"], tmp_path, **cache)
    assert done.returncode == 0, done.stdout + done.stderr
    code = (
        "import torch; from effnet_fast import native;"
        "x = torch.ones(1, 3, 4, 4).to(memory_format=torch.channels_last);"
        "y, *_ = native.ops().depthwise_forward(x, torch.ones(3, 1, 3, 3), 1, [1] * 4, None, None, 0, None, None, 0, False, False, -1);"
        "print(native.status('_ops').path, y[0, 0, 1, 1].item(), native.host().build_info()['version'])"
    )
    done = run([installed, "-c", code], tmp_path, **cache)
    assert done.returncode == 0, done.stderr
    path, value, version = done.stdout.split()
    assert Path(path).is_relative_to(tmp_path / "cache")
    assert (value, version) == ("9.0", build.version())


def test_kernels_is_not_importable_from_the_repository_root(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", "import kernels"], ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: this folder is effnet_fast.kernels")
    assert run([sys.executable, "-c", "import effnet_fast.kernels"], tmp_path).returncode == 0


def test_import_does_not_touch_cuda(tmp_path: Path) -> None:
    """Neither initialisation nor a device query: both end in one of these functions."""
    code = """
import os, torch
def refuse(*args, **kwargs):
    raise AssertionError("import touched CUDA")
torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda.is_available = torch.cuda.device_count = refuse
import effnet_fast, effnet_fast.kernels
from effnet_fast import build, native
for product in build.PRODUCTS:
    native.status(product)
effnet_fast.backends("cpu")
assert not torch.cuda.is_initialized()
opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]
assert not [path for path in opened if path.startswith("/dev/nvidia")], opened
"""
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


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
    monkeypatch.setattr(build, "LIBRARY_FOLDER", tmp_path)
    monkeypatch.setattr(build, "output_folders", lambda root: (tmp_path, tmp_path))
    state = native._find("_ops")
    assert state.path is None
    assert state.reason.startswith("_ops.so was built from other sources (0123456789ab, now ")
    assert state.fix == "effnet-fast build"
    monkeypatch.setenv("EFFNET_FAST_ALLOW_STALE", "1")
    assert native._find("_ops").path == tmp_path / "_ops.so"


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
    assert [path.name for path in out.iterdir() if path.name.startswith(".new-")] == []


def test_skipping(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNET_FAST_SKIP_BUILD", "1")
    manifest = build.build(checkout, tmp_path / "out", tmp_path / "work")
    assert manifest["products"] == {}
    assert {entry["reason"] for entry in manifest["missing"].values()} == {"EFFNET_FAST_SKIP_BUILD is set"}


def fake_nvcc(folder: Path, version: str) -> Path:
    """A script that answers like nvcc; the toolkit around it holds the runtime library of its version."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib64").mkdir()
    (folder / "lib64" / f"libcudart.so.{version.split('.')[0]}").touch()
    script = folder / "bin" / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'  --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;\n'
        "  --list-gpu-arch) echo compute_75 compute_80 compute_90 ;;\n"
        f"  --dryrun) echo '#$ TOP={folder}' >&2; echo '#$ INCLUDES=\"-I{folder}/include\"' >&2 ;;\n"
        "esac\n"
    )
    script.chmod(0o755)
    return script


def test_nvcc_of_another_cuda_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = toolchain.Torch(tmp_path / "torch", "2.15.0+cu132", "13.2")
    old, new = fake_nvcc(tmp_path / "old", "12.8"), fake_nvcc(tmp_path / "new", "13.0")
    monkeypatch.setattr(toolchain, "_nvcc_candidates", lambda: [old, new])
    found = toolchain.find_nvcc(torch)
    assert (found.path, found.version) == (new, "13.0")
    assert found.include == (tmp_path / "new" / "include",)
    assert found.runtime == tmp_path / "new" / "lib64" / "libcudart.so.13"
    monkeypatch.setattr(toolchain, "_nvcc_candidates", lambda: [old])
    with pytest.raises(
        toolchain.MissingTool, match=r"no nvcc for torch's CUDA 13.2: .* is CUDA 12.8"
    ) as caught:
        toolchain.find_nvcc(torch)
    assert caught.value.fix == "pip install 'cuda-toolkit[nvcc,cudart,cccl]==13.2.*'"
    with pytest.raises(toolchain.MissingTool, match="built without CUDA"):
        toolchain.find_nvcc(toolchain.Torch(tmp_path, "2.15.0+cpu", None))


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("", ("75", "80", "90")),  # the default, as far as this nvcc goes
        ("80;90", ("80", "90")),
        ("8.0 9.0a+PTX", ("80", "90a")),
        ("sm_75,75", ("75",)),
    ],
)
def test_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, archs: tuple[str, ...]
) -> None:
    nvcc = toolchain.Nvcc(fake_nvcc(tmp_path / "cuda", "13.0"), "13.0", (), tmp_path)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("EFFNET_FAST_CUDA_ARCHS", text)
    assert toolchain.cuda_archs(nvcc) == archs
    monkeypatch.delenv("EFFNET_FAST_CUDA_ARCHS")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert toolchain.cuda_archs(nvcc) == archs


@pytest.mark.parametrize("text", ["Hopper", "99", "9", "80;x"])
def test_unknown_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    nvcc = toolchain.Nvcc(fake_nvcc(tmp_path / "cuda", "13.0"), "13.0", (), tmp_path)
    monkeypatch.setenv("EFFNET_FAST_CUDA_ARCHS", text)
    with pytest.raises(toolchain.MissingTool, match=r"EFFNET_FAST_CUDA_ARCHS: nvcc 13.0 has no architecture"):
        toolchain.cuda_archs(nvcc)


def test_environment_report_is_plain_data() -> None:
    report = environment.collect(with_devices=False)
    assert json.loads(json.dumps(report)) == report
    assert report["effnet_fast"]["version"] == build.version()
    assert set(build.PRODUCTS) <= set(report["native"])
    for entry in report["missing"]:
        assert entry["reason"]
