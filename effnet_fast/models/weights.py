"""Reading weights from where users keep them, and loading them all or not at all."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, CheckpointWarning
from .checkpoints import STEMS, Checkpoint, first_line, read_file, some, state_dict
from .foreign import EFFICIENTNET_PYTORCH, TIMM, Names, library_of, renamed

#: ``None``, a torchvision weights enum member, an enum's name or a path, or a state dict.
Weights = Any

State = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

COUNTER = ".num_batches_tracked"

_ENUM_NAME = re.compile(r"(?:(EfficientNet_\w+_Weights)\.)?([A-Z][A-Z0-9_]*)")


def _is_enum_member(weights: object) -> bool:
    return callable(getattr(weights, "get_state_dict", None)) and not isinstance(weights, type)


def resolve_weights(weights: Weights, model_name: str | None = None) -> Weights:
    """Replaces the name of a torchvision enum by its member; checks that a member belongs to the model.

    Args:
        model_name: ``"b0"`` to ``"b7"``, or ``None`` for a model of no name, where only full names work.

    Raises:
        CheckpointError: an unknown name, or the enum of another model (before anything is downloaded).
    """
    expected = None if model_name is None else f"EfficientNet_{model_name.upper()}_Weights"
    if isinstance(weights, str) and (match := _ENUM_NAME.fullmatch(weights)):
        enum_name, member = match[1] or expected, match[2]
        if enum_name is None:
            raise CheckpointError(
                f"weights: {weights!r} needs its enum's name here, such as EfficientNet_B0_Weights.{member}"
            )
        weights = _torchvision_member(enum_name, member)
    given = type(weights).__name__
    if expected and given != expected and re.fullmatch(r"EfficientNet_\w+_Weights", given):
        raise CheckpointError(f"weights: model {model_name} takes {expected}, got {given}")
    return weights


def _torchvision_member(enum_name: str, member: str) -> Any:
    try:
        import torchvision.models
    # A torchvision built for another torch fails with RuntimeError: operator torchvision::nms does not exist.
    except (ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"weights: {enum_name}.{member} is resolved by torchvision, which cannot be imported ({error}): "
            "pip install torchvision"
        ) from None
    enum = getattr(torchvision.models, enum_name, None)
    if enum is None:
        raise CheckpointError(f"weights: torchvision {torchvision.__version__} has no {enum_name}")
    if member not in enum.__members__:
        raise CheckpointError(
            f"weights: {enum_name} has {', '.join(enum.__members__)}, got {member!r} "
            "(a file is named by its path)"
        )
    return enum[member]


def trained_classes(weights: Weights) -> int | None:
    """Number of classes an enum member says it was trained for; ``None`` when it does not say."""
    if not _is_enum_member(weights):
        return None
    categories = (getattr(weights, "meta", None) or {}).get("categories")
    return len(categories) if categories else None


def read_weights(weights: Weights, *, progress: bool = True) -> Checkpoint:
    """The state dict that ``weights`` stands for, unwrapped and without prefixes.

    Args:
        weights: a weights enum member, a path, or a mapping; see :func:`resolve_weights` for names.
        progress: show a progress bar for an enum's download.

    Raises:
        CheckpointError: no such file, not a checkpoint, or not a state dict.
    """
    if _is_enum_member(weights):
        return state_dict(_download(weights, progress), str(weights))
    if isinstance(weights, Mapping):
        return state_dict(weights, "weights")
    if isinstance(weights, (str, os.PathLike)):
        path = Path(weights).expanduser()
        return state_dict(read_file(path), str(path))
    raise CheckpointError(
        "weights: expected None, a torchvision weights enum member or its name, a path or a state dict, "
        f"got {weights.__name__ if isinstance(weights, type) else type(weights).__name__}"
    )


def _download(member: Any, progress: bool) -> Any:
    try:
        return member.get_state_dict(progress=progress, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"weights: {member} could not be downloaded: {first_line(error)}") from error


def load_weights(model: Model, weights: Weights, *, progress: bool = True) -> Model:
    """Loads ``weights`` into ``model`` and returns it; when they do not fit, the model stays as it was.

    Names of timm and efficientnet_pytorch are understood, and the epsilon of the BatchNorms is set to that of the library.

    Args:
        weights: as for the builders: an enum member or its full name, a path, or a state dict.

    Raises:
        CheckpointError: unreadable weights, missing, unexpected or wrongly shaped entries, a classifier of another
            size than ``num_classes``, or weights of a network that computes something else.

    Warns:
        CheckpointWarning: where there was a choice: which of two sets was taken, prefixes, other libraries' names.
    """
    checkpoint = read_weights(resolve_weights(weights), progress=progress)
    own, notes = model.state_dict(), list(checkpoint.notes)
    names = _foreign_names(checkpoint, own)
    state = dict(checkpoint)
    if names is not None:
        _check_same_network(names, checkpoint)
        state = renamed(state, names, own)
        notes += _differences(names, checkpoint, model)
    # Counters of batches came with PyTorch 0.4.1; older checkpoints lack them, and PyTorch lets them.
    for key, value in own.items():
        if key.endswith(COUNTER):
            state.setdefault(key, torch.zeros_like(value))
    _check_fit(own, state)
    model.load_state_dict(state, strict=True)
    if names is not None:
        for norm in _norms(model):
            norm.eps = names.eps
    if notes:
        warnings.warn(f"weights: {checkpoint.source}: {'; '.join(notes)}", CheckpointWarning, stacklevel=2)
    return model


def rename_weights(weights: Weights, model: nn.Module) -> State:
    """Weights in timm's or efficientnet_pytorch's names as a state dict of ``model``, to fine-tune from.

    Nothing is checked or loaded: networks that pad as TensorFlow does compute something else than ``model``, and
    :func:`effnet_fast.patch` runs them as they are.

    Raises:
        CheckpointError: unreadable weights, or names of neither library.
    """
    checkpoint, own = read_weights(resolve_weights(weights)), model.state_dict()
    names = _foreign_names(checkpoint, own)
    if names is None:
        raise CheckpointError(
            f"weights: {checkpoint.source} has not the names of timm or efficientnet_pytorch"
        )
    return renamed(checkpoint, names, own)


def number_of_classes(state: Mapping[str, Tensor]) -> int | None:
    """Classes of the network whose weights these are, in any library's names; ``None`` where there is no classifier."""
    for head in ("classifier.1", TIMM.classifier, EFFICIENTNET_PYTORCH.classifier):
        if f"{head}.bias" in state:
            return state[f"{head}.bias"].numel()
    return None


def _foreign_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Names | None:
    return library_of(state) if STEMS[0] in own and STEMS[0] not in state else None


def _check_same_network(names: Names, checkpoint: Checkpoint) -> None:
    """TensorFlow's networks pad at stride 2 on the right and below only."""
    name = checkpoint.architecture or Path(checkpoint.source).name
    if names.same_padding or name.startswith("tf_"):
        network = names.library if names.same_padding else f"timm's {name}"
        raise CheckpointError(
            f"weights: {checkpoint.source} is of {network}, which pads as TensorFlow does, where this model pads as "
            "torchvision does and would compute other values: effnet_fast.patch runs that library's model as it is, "
            "and models.rename_weights gives a state dict to fine-tune from"
        )


def _differences(names: Names, checkpoint: Checkpoint, model: nn.Module) -> list[str]:
    notes = [f"its names are {names.library}'s"]
    if any(norm.eps != names.eps for norm in _norms(model)):
        notes.append(f"the BatchNorms' eps was set to {names.library}'s {names.eps}")
    if not checkpoint.architecture:
        notes.append(
            "were it one of timm's tf_efficientnet_*, which the names do not tell, it would compute other values here "
            "(effnet_fast.patch runs those as they are)"
        )
    return notes


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _check_fit(own: Mapping[str, Tensor], state: State) -> None:
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and not _fits(own[key], state[key])]
    if not (missing or unexpected or wrong):
        return
    head = "classifier.1.weight"
    if not (missing or unexpected) and head in wrong and set(wrong) <= {head, "classifier.1.bias"}:
        have, want = state[head].shape, own[head].shape
        if have[1:] == want[1:]:
            raise CheckpointError(
                f"weights: the checkpoint's classifier has {have[0]} classes, the model's {want[0]}: "
                f"build the model with num_classes={have[0]} (and replace model.classifier[1] afterwards)"
            )
    shapes = [f"{key} expected {_describe(own[key])}, got {_describe(state[key])}" for key in wrong]
    parts = (("missing", missing, ", "), ("unexpected", unexpected, ", "), ("of wrong shape", shapes, "; "))
    raise CheckpointError(
        "weights do not fit the model: "
        + "; ".join(f"{len(items)} {what} ({some(items, sep)})" for what, items, sep in parts if items)
    )


def _fits(own: Tensor, given: Tensor) -> bool:
    # Counters of batches may have been cast with everything else, and are cast back.
    return own.shape == given.shape and (given.is_floating_point() or not own.is_floating_point())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
