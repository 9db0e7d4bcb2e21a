"""Optimized models as files: :func:`save` and :func:`load`.

A file is one of safetensors (https://github.com/huggingface/safetensors): the folded tensors in fp32 under names like
``blocks.3.expand.weight``, and in its metadata, under ``effnet_fast``, everything else as JSON. It holds nothing that
belongs to a processor or a version of PyTorch; weights are packed where it is loaded.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backend.network import mapped
from ..backend.reference.network import ReferenceProgram
from ..data.images import Preset
from ..errors import EffnetFastError, UnsupportedBlockError
from ..system.writing import replaced_by
from .folded import Folded
from .module import OptimizedModel
from .record import DTYPES, DamageError, decode, encode

#: The key of the metadata.
_KEY = "effnet_fast"


def save(
    model: OptimizedModel,
    path: str | os.PathLike[str],
    *,
    preset: Preset | None = None,
    classes: tuple[str, ...] | list[str] | None = None,
) -> None:
    """Write an optimized model to a file, which is replaced when all of it is written.

    Args:
        model: what :func:`effnet_fast.optimize` returned for a network that runs as one program.
        path: of the file, by custom named ``.effnet``.
        preset: how photos become its images, for ``effnet-fast classify``; ``None``: what the model has.
        classes: names of its outputs, in order; ``None``: what the model has.

    Raises:
        EffnetFastError: another kind of model, another number of classes, safetensors is not installed, or the file
            cannot be written.
    """
    if not isinstance(model, OptimizedModel):
        raise EffnetFastError(
            f"save: model: expected what optimize returns for a network that runs as one program, got "
            f"{type(model).__name__}; other models are saved by torch.save(model.state_dict(), path)"
        )
    folded = model.folded
    folded = folded._replace(
        preset=preset or folded.preset, classes=folded.classes if classes is None else tuple(classes)
    )
    if folded.classes is not None:
        _check_classes(folded.classes, outputs(folded), "save")
    tensors: dict[str, Tensor] = {}
    try:
        record = encode(folded, tensors)
    except UnsupportedBlockError as error:
        raise EffnetFastError(
            f"save: model: a layer after the network cannot be in a file: {error}"
        ) from None
    save_file = _safetensors("save").save_file
    with replaced_by(Path(path), "save") as partial:
        save_file(tensors, partial, metadata={_KEY: json.dumps(record)})


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> OptimizedModel:
    """Read an optimized model that :func:`save` wrote, on this machine or another.

    Nothing in the file is executed: sizes, dtypes and the graph are checked before anything is computed.

    Args:
        device: where it runs: the CPU.
        dtype: to compute in, ``torch.float32`` or ``torch.bfloat16``; ``None``: what it was optimized for. Files hold
            fp32, so that either is what :func:`effnet_fast.optimize` would have made.

    Raises:
        EffnetFastError: no such file, a damaged one or one of another kind or version, a device or dtype that
            optimized models do not run in.
    """
    if torch.device(device).type != "cpu":
        raise EffnetFastError(f"load: device: expected cpu, where optimized models run, got {device}")
    if dtype is not None and dtype not in DTYPES.values():
        raise EffnetFastError(f"load: dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
    tensors, record = _read(Path(path))
    try:
        folded = decode(record, tensors)
        found = _checked_outputs(folded)
        if folded.classes is not None:
            _check_classes(folded.classes, found, "load")
        return OptimizedModel(folded if dtype is None else folded._replace(dtype=dtype))
    except (DamageError, UnsupportedBlockError) as error:
        raise EffnetFastError(f"load: {path} is damaged: {error}") from None


def _checked_outputs(folded: Folded) -> int:
    """:func:`outputs`, which shows that every layer takes what the one before it gives: on tensors without memory, because not every backend looks.

    Raises:
        DamageError: one does not; the text is PyTorch's.
    """
    try:
        return outputs(folded)
    except (RuntimeError, ValueError) as error:
        raise DamageError(f"its layers do not fit: {error}"[:300]) from None


def _check_classes(classes: tuple[str, ...], expected: int, op: str) -> None:
    """As many names as outputs.

    Raises:
        EffnetFastError: another number, or names that are no text.
    """
    if not all(isinstance(name, str) for name in classes):
        raise EffnetFastError(f"{op}: classes: expected names, got {classes!r}"[:300])
    if len(classes) != expected:
        raise EffnetFastError(
            f"{op}: classes: expected {expected} names, as many as outputs, got {len(classes)}"
        )


def outputs(folded: Folded) -> int:
    """How many outputs an image has, found without computing them."""
    network = mapped(folded.network, lambda t: t.to("meta"))
    tail = nn.Sequential(*copy.deepcopy(folded.tail)).to("meta")
    side = max(256, 0 if folded.preset is None else folded.preset.crop)
    x = torch.empty(1, folded.channels, side, side, dtype=torch.float32, device="meta")
    y = ReferenceProgram(network, torch.float32).run(x)
    return tail(y[:, :, None, None] if folded.keep_dims else y).shape[1]  # type: ignore[no-any-return]


def _safetensors(op: str) -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise EffnetFastError(
            f"{op}: files of optimized models need safetensors: pip install safetensors"
        ) from None
    return safetensors.torch


def _read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a file, in memory of their own, and the record."""
    _safetensors("load")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            # Memory of their own: what is mapped changes with the file, and ends the process where the file is cut.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        record = None if text is None else json.loads(text)
    except OSError as error:
        raise EffnetFastError(f"load: {path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise EffnetFastError(
            f"load: {path} is damaged or no file of effnet_fast.save: {error}"[:300]
        ) from None
    if text is None:
        raise EffnetFastError(f"load: {path} was not written by effnet_fast.save")
    return tensors, record
