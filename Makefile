# `make demo` and `make test` set up everything they need in .venv; a second run starts in seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Folders too: their time tells of files that were removed.
NATIVE_SOURCES := $(shell find CMakeLists.txt cmake csrc effnet_fast/build setup.py -not -path '*__pycache__*')
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
LIB := effnet_fast/lib

# Installing skips the native build: it is a target of its own, with its own dependencies.
INSTALL := PYTHONWARNINGS=ignore EFFNET_FAST_SKIP_BUILD=1 $(PIP) install --quiet --no-build-isolation

# The demo's build is for this machine: CUDA kernels, and the nvcc of .dev, only where an NVIDIA driver is visible.
ifeq ($(wildcard /proc/driver/nvidia/version /dev/nvidiactl /dev/dxg),)
DEMO_NEEDS := $(VENV)/.demo
DEMO_BUILD := EFFNET_FAST_SKIP_CUDA=1
else
DEMO_NEEDS := $(VENV)/.dev
endif
# Building and testing are for every machine: all CUDA architectures, unless some are named.
EFFNET_FAST_CUDA_ARCHS ?= all

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-min test-core test-full fuzz sanitize lint format build bench publish gpu gpu-cache build-gpu-cache clean

help:
	@echo "make demo    classify photos with stock and patched networks, side by side"
	@echo "make test    build for the CPU and every CUDA architecture, lint, run all tests"
	@echo "make test-min   the tests of what touches torch and Triton with the oldest ones there are kernels for (.venv-min)"
	@echo "make test-full  make test with what takes hours: the launches of B0 to B7 compiled for sm_75, sm_80 and sm_90"
	@echo "make fuzz    random operations and models for half an hour (FUZZ_SECONDS)"
	@echo "make sanitize  the CPU kernels under address, undefined-behaviour and thread sanitizers"
	@echo "make build   the native libraries only (CUDA needs nvcc; .venv gets one from PyPI if there is none)"
	@echo "make bench   this machine's benchmarks, results and a page under build/bench (20 minutes; an idle machine, please)"
	@echo "make publish the same, into benchmarks/results, README.md and docs/figures"
	@echo "make gpu     everything that wants a GPU, in nine minutes, results under OUT (default build/gpu)"
	@echo "make gpu-cache  compile ahead what make gpu launches; carry this folder with build/triton to the GPU (PYTHON: its version)"
	@echo "make setup   .venv with everything for development"
	@echo "make lint    ruff, clang-format, mypy"
	@echo "make format  ruff and clang-format, in place"
	@echo "make clean   remove what was built (not .venv)"

# --- environment ---

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "make: $(PYTHON) is missing or older than 3.10; choose another with: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make virtual environments; run: apt install python3-venv"; exit 1; }
	@command -v c++ g++ clang++ $(CXX) >/dev/null || \
	  { echo "make: no C++ compiler found; run: apt install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.setuptools: | $(BIN)/python
	$(PIP) install --quiet --upgrade pip "setuptools>=77" wheel
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.setuptools
	@test -e $(VENV)/.dev || { echo "installing torch and the demo's packages into $(VENV) (minutes, the first time)"; \
	  $(INSTALL) -e ".[demo,build]"; }
	@touch $@

DEV := -e ".[dev]"
$(VENV)/.dev: pyproject.toml tests/requirements-min.txt | $(VENV)/.setuptools
	@echo "installing torch and the development packages into $(VENV) (minutes, the first time)"
	$(INSTALL) $(DEV)
	@touch $@

setup: $(VENV)/.dev

# --- native code ---

$(LIB)/.built-host: $(NATIVE_SOURCES) | $(DEMO_NEEDS)
	$(DEMO_BUILD) EFFNET_FAST_FORCE_BUILD=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(LIB)/.built-all: $(NATIVE_SOURCES) | $(VENV)/.dev
	EFFNET_FAST_CUDA=1 EFFNET_FAST_CUDA_ARCHS="$(EFFNET_FAST_CUDA_ARCHS)" EFFNET_FAST_WERROR=1 EFFNET_FAST_FORCE_BUILD=1 \
	  $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@ $(LIB)/.built-host

build: $(LIB)/.built-all

# --- what it is for ---

demo: $(VENV)/.demo $(LIB)/.built-host
	$(BIN)/effnet-fast demo

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# pytest last: its summary is the closing line.
test: build lint
	$(BIN)/python -m pytest

# The same with the oldest torch and Triton there are kernels for, in an environment of its own. The libraries are those of
# `make build` if they are there, because one built with any torch serves every other; else they are built with this one.
test-min:
	$(MAKE) --no-print-directory VENV=.venv-min DEV='-e ".[build,nvcc]" -r tests/requirements-min.txt' test-core

CORE := $(addprefix tests/,fake_cuda test_compiled.py test_conv_bn_act.py test_conv_layer.py test_conv_layer_patching.py \
  test_cuda_backend.py test_dispatch.py test_exact.py test_fused_models.py test_mbconv_module.py test_model_usage.py test_ops.py \
  test_patching.py test_patching_life.py test_reference.py test_training.py triton)
test-core: build
	$(BIN)/python -m pytest $(CORE)

test-full: build
	$(BIN)/python -m pytest --full

# Half an hour of random cases, or as long as FUZZ_SECONDS says.
FUZZ_SECONDS ?= 1800
fuzz: build
	$(BIN)/python -m pytest -q --fuzz-seconds=$(FUZZ_SECONDS) --timeout=0 $(wildcard tests/test_fuzz_*.py)

# The CPU kernels under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer.
sanitize: $(VENV)/.dev
	$(BIN)/python scripts/sanitize.py

bench: build
	$(BIN)/python benchmarks/publish.py --out build/bench

publish: build
	$(BIN)/python benchmarks/publish.py

# Does not need .venv: a GPU machine may have its own Python and no network.
OUT ?= build/gpu
gpu:
	scripts/gpu.sh $(OUT)

# Compiled on any machine for the one with the GPU, as tests/fake_cuda/rehearse.py says: with its Python and its Triton.
GPU_CAPABILITY ?= 90
gpu-cache:
	$(MAKE) --no-print-directory VENV=.venv-gpu DEV='-e ".[build,nvcc]" -r tests/requirements-min.txt' build-gpu-cache
build-gpu-cache: build
	$(BIN)/python tests/fake_cuda/rehearse.py --capability $(GPU_CAPABILITY)

clean:
	rm -rf build dist $(LIB) *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './.venv-min/*' -not -path './.venv-gpu/*' -prune -exec rm -rf {} +
