"""Every kernel through the function that Triton generates to bind a launch's arguments; no GPU is needed.

Neither the interpreter nor the offline compiler calls it, and a GPU does at every launch: an argument with the name of one of
its locals (``params`` was one) cannot be launched.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from effnet_fast.kernels import configs
from effnet_fast.kernels.runtime import INTERPRET
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from effnet_fast import kernels

pytestmark = pytest.mark.skipif(INTERPRET, reason="interpreted kernels are not bound")


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(kernels.__path__):
        yield importlib.import_module(f"{kernels.__name__}.{found.name}")


# A launchable kernel's name ends in "_kernel"; the other jit functions are called from kernels and never bound.
KERNELS: dict[str, Any] = {
    name: value
    for module in modules()
    for name, value in vars(module).items()
    if isinstance(value, JITFunction) and name.endswith("_kernel")
}


def bind(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the generated function sees them, by name."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(*arguments.values())
    assert len(specialization) == len(arguments)
    return bound  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_binds(name: str) -> None:
    kernel = KERNELS[name]
    arguments = {p.name: "silu" if p.is_constexpr else torch.empty(4) for p in kernel.params}
    bound = bind(kernel, arguments)
    assert list(bound) == list(arguments)
    assert all(bound[key] is value for key, value in arguments.items())


def test_every_kernel_is_found() -> None:
    assert {f"{name}_kernel" for name in configs.TABLE} <= set(KERNELS)


def test_a_local_of_the_binder_is_found_out() -> None:
    @triton.jit
    def clash(params, value):  # type: ignore[no-untyped-def]
        pass

    with pytest.raises(TypeError):
        bind(clash, {"params": torch.empty(4), "value": torch.empty(4)})
