"""The arguments of a backward by name, each put into its record: tests vary single ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from effnet_fast.records import DepthwiseIncoming, PointwiseIncoming, Source

_INCOMING = {"depthwise_backward": DepthwiseIncoming, "pointwise_backward": PointwiseIncoming}


class ByName:
    """A backend whose backwards take ``(dy, x, weight, ..., z=, grad=, in_affine=, ...)``; all else is the backend's own.

    ``in_affine``, ``in_act``, ``in_norm`` and, of pointwise, ``gate`` are the source's, the rest is incoming.
    """

    def __init__(self, functions: Any) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._functions, name)
        return functools.partial(call, name, function) if name in _INCOMING else function


def records(op: str, dy: Tensor, x: Tensor, facts: dict[str, Any]) -> tuple[Any, Source, dict[str, Any]]:
    """Incoming, source, and the facts that belong to neither."""
    rest = dict(facts)
    source = {name: rest.pop(f"in_{name}") for name in ("affine", "act", "norm") if f"in_{name}" in rest}
    if op == "pointwise_backward":
        source["gate"] = rest.pop("gate", None)
    kind = _INCOMING[op]
    incoming = {name: rest.pop(name) for name in kind._fields[1:] if name in rest}
    return kind(dy, **incoming), Source(x, **source), rest


def call(op: str, function: Callable[..., Any], dy: Tensor, x: Tensor, *args: Any, **facts: Any) -> Any:
    incoming, source, rest = records(op, dy, x, facts)
    return function(incoming, source, *args, **rest)
