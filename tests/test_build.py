"""What a build looks for, what it leaves out, what it says."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from environments import copy_sources, fake_nvcc

from effnet_fast import build
from effnet_fast.backend import native
from effnet_fast.build import driver as driver_module
from effnet_fast.build import gpu, progress, toolchain
from effnet_fast.system import environment


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
    assert gpu.architectures(nvcc) == archs
    monkeypatch.delenv("EFFNET_FAST_CUDA_ARCHS")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert gpu.architectures(nvcc) == archs


@pytest.mark.parametrize("text", ["Hopper", "99", "9", "80;x"])
def test_unknown_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    nvcc = toolchain.Nvcc(fake_nvcc(tmp_path / "cuda", "13.0"), "13.0", (), tmp_path)
    monkeypatch.setenv("EFFNET_FAST_CUDA_ARCHS", text)
    with pytest.raises(toolchain.MissingTool, match=r"EFFNET_FAST_CUDA_ARCHS: nvcc 13.0 has no architecture"):
        gpu.architectures(nvcc)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER_FILES", ())
    for variable in (*gpu.ARCHS_VARIABLES, gpu.CUDA_VARIABLE, "EFFNET_FAST_SKIP_CUDA"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def driver(no_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER_FILES", (os.devnull,))
    monkeypatch.setattr(toolchain, "find_torch", lambda: toolchain.Torch(Path(), "2.15.0+cu132", "13.2"))


def reason(missing: toolchain.MissingTool | None) -> str | None:
    return None if missing is None else missing.reason


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_cuda_is_built_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(build.unwanted("_cuda")) == "no NVIDIA driver on this machine"
    assert build.unwanted("_ops") is None and build.unwanted("_C") is None
    for variable, value in (("EFFNET_FAST_CUDA", "1"), *((name, "90") for name in gpu.ARCHS_VARIABLES)):
        monkeypatch.setenv(variable, value)
        assert build.unwanted("_cuda") is None
        monkeypatch.setenv("EFFNET_FAST_SKIP_CUDA", "1")
        assert reason(build.unwanted("_cuda")) == "EFFNET_FAST_SKIP_CUDA is set"
        monkeypatch.delenv("EFFNET_FAST_SKIP_CUDA")
        monkeypatch.delenv(variable)


@pytest.mark.usefixtures("driver")
def test_with_a_driver_cuda_is_built_where_torch_can_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.unwanted("_cuda") is None
    monkeypatch.setenv("EFFNET_FAST_CUDA", "0")
    assert reason(build.unwanted("_cuda")) == "EFFNET_FAST_CUDA=0"
    monkeypatch.delenv("EFFNET_FAST_CUDA")
    monkeypatch.setattr(toolchain, "find_torch", lambda: toolchain.Torch(Path(), "2.15.0+cpu", None))
    assert reason(build.unwanted("_cuda")) == "torch 2.15.0+cpu is built without CUDA"


@pytest.mark.parametrize(
    ("capabilities", "archs"),
    [
        ("9.0\n9.0\n", ("90",)),
        ("9.0\n8.0\n", ("80", "90")),
        ("12.1\n", ("75", "80", "90")),  # newer than this nvcc: the default, with its PTX
        ("No devices were found\n", ("75", "80", "90")),
    ],
)
def test_architectures_of_the_gpus_here(
    tmp_path: Path,
    no_driver: None,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: str,
    archs: tuple[str, ...],
) -> None:
    nvcc = toolchain.Nvcc(fake_nvcc(tmp_path / "cuda", "13.0"), "13.0", (), tmp_path)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{capabilities}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu.architectures(nvcc) == archs
    monkeypatch.setenv("EFFNET_FAST_CUDA_ARCHS", "all")
    assert gpu.architectures(nvcc) == ("75", "80", "90")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tool of a build is to be found, except torch."""
    monkeypatch.setattr(toolchain, "find_program", lambda *names: None)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: "/nonexistent")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        toolchain.importlib.util, "find_spec", lambda name: None if name == "pybind11" else find_spec(name)
    )
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("nothing_installed", "no_driver")
def test_all_missing_tools_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = build.diagnose("_C")
    assert obstacle is not None
    for tool in ("cmake", "ninja", "C++ compiler", "pybind11", "Python.h"):
        assert tool in obstacle.reason
    assert obstacle.fix == "apt install g++ python3-dev && pip install cmake ninja pybind11"

    monkeypatch.setattr(build, "output_folders", lambda root: (tmp_path / "lib", tmp_path / "work"))
    code, text = build_command(monkeypatch)
    assert code == 1
    remedy = f"what is missing comes with: {obstacle.fix} && effnet-fast build"
    said, first, *_, last = text.splitlines()[1:]
    assert first == last == remedy and said.startswith("missing: cmake and ninja not found; no C++ compiler")
    assert "_ops: missing: cmake and ninja not found; no C++ compiler" in text


def build_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Exit code and output; what the options put into the environment is taken back."""
    before = dict(os.environ)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = build.main(arguments)
    for name in set(os.environ) - set(before):
        monkeypatch.delenv(name)
    return code, out.getvalue()


@pytest.mark.usefixtures("no_driver")
def test_build_command_on_a_machine_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def compile_product(product: str, *_: object) -> dict[str, object]:
        built.append(product)
        return {"file": f"{product}.so", "sources": "0", "seconds": 3}

    monkeypatch.setattr(driver_module, "_build_product", compile_product)
    monkeypatch.setattr(build, "output_folders", lambda root: (tmp_path / "lib", tmp_path / "work"))
    code, text = build_command(monkeypatch)
    assert (code, built) == (0, ["_ops", "_C"])
    assert "  _ops: built, 3 s\n" in text
    assert "  _cuda: left out: no NVIDIA driver on this machine (effnet-fast build --cuda)\n" in text
    for asking in (("--cuda",), ("_cuda",), ("--archs", "90")):
        built.clear()
        assert build_command(monkeypatch, *asking)[0] == 0
        assert "_cuda" in built
    # Where nobody asks any more, what was built stays.
    assert build_command(monkeypatch, "--no-cuda") == (0, mock.ANY)
    assert build.read_manifest(tmp_path / "lib")["missing"] == {}


@pytest.mark.usefixtures("no_driver")
def test_what_came_with_the_package_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `pip install --no-build-isolation .`, where `effnet-fast build` compiled all of it into the cache."""
    root = copy_sources(tmp_path / "sources")
    beside, built = tmp_path / "beside", []
    beside.mkdir()
    there = {
        "_ops": {"file": "_ops.so", "sources": build.source_hash(root, "_ops")},
        "_C": {"file": "_C.so", "sources": "of another version"},
    }
    (beside / build.MANIFEST).write_text(json.dumps({"products": there, "missing": {}}))

    def compile_product(product: str, *_: object) -> dict[str, object]:
        built.append(product)
        return {"file": f"{product}.so", "sources": "0", "seconds": 3}

    monkeypatch.setattr(build, "source_root", lambda: root)
    monkeypatch.setattr(driver_module, "LIBRARY_FOLDER", beside)
    monkeypatch.setattr(driver_module, "_build_product", compile_product)
    monkeypatch.setattr(build, "output_folders", lambda root: (tmp_path / "cache", tmp_path / "work"))
    # The manifest names a file that is gone.
    assert build_command(monkeypatch)[0] == 0 and built == ["_ops", "_C"]
    (beside / "_ops.so").touch()
    built.clear()
    code, text = build_command(monkeypatch)
    assert (code, built) == (0, ["_C"])
    assert "  _ops: came with the package (to build it anew: effnet-fast build _ops)\n" in text
    built.clear()
    assert build_command(monkeypatch, "_ops")[0] == 0 and built == ["_ops"]
    there["_C"]["sources"] = build.source_hash(root, "_C")
    (beside / build.MANIFEST).write_text(json.dumps({"products": there, "missing": {}}))
    (beside / "_C.so").touch()
    assert build_command(monkeypatch)[1].startswith("nothing to build\n  _ops: came with the package")
    # In a checkout compilers decide what is new.
    monkeypatch.setattr(build, "source_root", lambda: driver_module.PACKAGE.parent)
    built.clear()
    assert build_command(monkeypatch)[0] == 0 and built == ["_ops", "_C"]


def test_what_was_missing_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "library_folders", lambda root: [tmp_path])
    missing = {
        "_C": {"reason": "pybind11 is not importable in the build environment", "fix": "", "failed": True}
    }
    (tmp_path / build.MANIFEST).write_text(json.dumps({"products": {}, "missing": missing}))
    assert native.find("_C").reason == "not built yet, every tool is here"
    monkeypatch.setattr(toolchain, "find_cmake", raising(toolchain.MissingTool("cmake not found", "")))
    assert native.find("_C").reason == "not built: cmake not found"
    missing["_C"]["reason"] = "build failed: error: no luck"
    (tmp_path / build.MANIFEST).write_text(json.dumps({"products": {}, "missing": missing}))
    assert native.find("_C").reason == "build failed: error: no luck"


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.usefixtures("no_driver")
def test_info_misses_no_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    state = native.Status(False, None, "not built: no NVIDIA driver on this machine", "", {})
    monkeypatch.setattr(native, "status", lambda product: state)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain, "find_nvcc", raising(toolchain.MissingTool("nvcc not found", "")))
    report = {"native": environment.native_libraries(), "packages": environment.packages()}
    whats = [entry["what"] for entry in environment.missing(report)]
    assert "CPU kernels" in whats and "CUDA kernels" not in whats and "Triton kernels" not in whats
    assert environment.tools()["nvcc"] == "not needed: no NVIDIA driver on this machine"
    monkeypatch.setenv("EFFNET_FAST_CUDA", "1")
    assert "CUDA kernels" in [entry["what"] for entry in environment.missing(report)]


def test_progress_counts_files(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    counter = progress.Progress("_ops")
    for line in ("-- Configuring done\n", "[1/2] Building CXX object a.o\n", "[2/2] Linking\n"):
        counter.heard(line)
    assert capsys.readouterr().out == "  _ops: 1 of 2 files, 0 s\n  _ops: 2 of 2 files, 0 s\n"
    monkeypatch.setattr(progress, "PAUSE", 60.0)
    counter.heard("[1/2] Building CXX object a.o\n")
    assert capsys.readouterr().out == ""


def test_failed_command_names_its_error_and_keeps_its_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "echo '[1/2] fine'; echo 'a.cpp:3: error: no such thing' >&2; echo 'later error'; exit 3"
    with pytest.raises(toolchain.MissingTool, match="build failed: a.cpp:3: error: no such thing") as caught:
        progress.run(["sh", "-c", script], log, False, progress.Progress("_ops"))
    assert caught.value.fix == f"see {log}"
    assert log.read_text().splitlines()[1:] == ["[1/2] fine", "a.cpp:3: error: no such thing", "later error"]
