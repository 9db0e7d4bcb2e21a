"""Options that several subcommands share: device, dtype, backend."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..dispatch import MODULES, use_backend
from ..errors import EffnetFastError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        default="",
        help=f"auto, or some of {', '.join(MODULES)}, in the order to be tried, comma-separated",
    )


def device(name: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        EffnetFastError: an unknown name, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (index and not index.isdecimal()) or name.endswith(":")):
        raise EffnetFastError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise EffnetFastError(
            f"--device: {name} is not on this machine, where torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return torch.device(name)


def backend(names: str) -> AbstractContextManager[None]:
    """The context of ``--backend``; without one ``EFFNET_FAST_BACKEND`` and the automatic choice remain.

    Raises:
        BackendError: an unknown backend.
    """
    if not names:
        return nullcontext()
    return use_backend(names)


class Names(argparse.Action):
    """Names separated by spaces or commas, as one list; ``choices`` are checked here, name by name."""

    def __init__(self, *args: Any, choices: Iterable[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, nargs="+", **kwargs)
        self.known = tuple(choices)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        names = [name for value in values for name in value.split(",") if name]
        for name in names:
            if self.known and name not in self.known:
                raise argparse.ArgumentError(self, f"expected some of {', '.join(self.known)}, got {name!r}")
        setattr(namespace, self.dest, names)


def positive(text: str) -> int:
    """An argument that is an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)
