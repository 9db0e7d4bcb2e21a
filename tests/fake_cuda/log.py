"""What the fake device wrote down, as Python values; the lines are those of ``device/*.cpp``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Launch(NamedTuple):
    """A kernel's launch. ``stream`` 0 is the device's default stream, ``thread`` 0 the first that launched anything."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    device: int
    stream: int
    captured: bool
    cooperative: bool
    module: (
        bool  # loaded through the driver, as Triton does; others are a library's, as _cuda's and PyTorch's
    )
    thread: int


class Log(NamedTuple):
    """The events of a stretch of the log, each kind in order."""

    launches: list[Launch]
    operations: list[tuple[str, int, int]]  # copies and fills: kind, device, stream
    modules: list[int]  # the device of each module that was loaded
    syncs: list[str]  # the calls that wait for the device
    graphs: list[int]  # nodes of each captured graph
    replays: list[int]  # nodes of each replayed graph
    violations: list[str]

    @property
    def names(self) -> Counter[str]:
        """Launches by the kernel's short name."""
        return Counter(short(launch.name) for launch in self.launches)

    @property
    def kernels(self) -> int:
        """Kernels launched, copies and fills: what a GPU's queue gets."""
        return len(self.launches) + len(self.operations)


def parse(lines: Iterable[str]) -> dict[str, Log]:
    """The log by its marks; what precedes the first mark is under ""."""
    logs: dict[str, Log] = {}
    current = logs.setdefault("", _empty())
    for line in lines:
        kind, _, rest = line.rstrip("\n").partition("\t")
        fields = rest.split("\t")
        if kind == "mark":
            current = logs.setdefault(rest, _empty())
        elif kind == "launch":
            current.launches.append(_launch(fields))
        elif kind == "operation":
            current.operations.append((fields[0], int(fields[1]), int(fields[2])))
        elif kind == "module":
            current.modules.append(int(fields[0]))
        elif kind == "sync":
            current.syncs.append(rest)
        elif kind in ("graph", "replay"):
            (current.graphs if kind == "graph" else current.replays).append(int(fields[0]))
        elif kind == "violation":
            current.violations.append(rest)
        else:
            raise ValueError(f"the fake device's log has the line {line!r}")
    return logs


def _empty() -> Log:
    return Log([], [], [], [], [], [], [])


def _launch(fields: list[str]) -> Launch:
    grid, block, shared, device, stream, captured, cooperative, module, thread, name = fields
    return Launch(
        name,
        tuple(map(int, grid.split(","))),
        tuple(map(int, block.split(","))),
        *(int(shared), int(device), int(stream)),
        *(captured == "1", cooperative == "1", module == "1", int(thread)),
    )


# What PyTorch's general kernels do is said by a template argument: a functor, or the function whose lambda it is.
_FUNCTION = re.compile(
    r"\b(?!(?:AU|BU|U)naryFunctor|BinaryFunctor|CUDAFunctor\b)(\w*(?:[Ff]unctor|Ops)\w*|\w+_kernel\w*)"
)


def short(name: str) -> str:
    """A kernel's name without return type, namespaces, template arguments and parameters."""
    if "(" not in name and "<" not in name:
        return name
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    head, _, arguments = plain.partition("<" if "<" in plain else "(")
    base = re.split(r"[:( ]", head)[-1]
    found = _FUNCTION.search(arguments) if "at::native" in plain else None
    return f"{base}<{found[1]}>" if found else base
