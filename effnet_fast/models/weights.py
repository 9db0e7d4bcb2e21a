"""Reading weights from where users keep them, and loading them all or not at all."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

#: ``None``, a torchvision weights enum member, an enum's name or a path, or a state dict.
Weights = Any

State = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

#: Keys under which training scripts keep the state dict, tried in this order.
WRAPPERS = ("state_dict", "model_state_dict", "model")
#: Put before every key by DataParallel, DistributedDataParallel and torch.compile.
PREFIXES = ("module.", "_orig_mod.")

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


def read_weights(weights: Weights, *, progress: bool = True) -> State:
    """The state dict that ``weights`` stands for, unwrapped and without prefixes.

    Args:
        weights: a weights enum member, a path, or a mapping; see :func:`resolve_weights` for names.
        progress: show a progress bar for an enum's download.

    Raises:
        CheckpointError: no such file, not a checkpoint, or not a state dict.
    """
    if _is_enum_member(weights):
        return _state_dict(_download(weights, progress), str(weights))
    if isinstance(weights, Mapping):
        return _state_dict(weights, "weights")
    if isinstance(weights, (str, os.PathLike)):
        path = Path(weights).expanduser()
        return _state_dict(_read_file(path), str(path))
    raise CheckpointError(
        "weights: expected None, a torchvision weights enum member or its name, a path or a state dict, "
        f"got {weights.__name__ if isinstance(weights, type) else type(weights).__name__}"
    )


def _download(member: Any, progress: bool) -> Any:
    try:
        return member.get_state_dict(progress=progress, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"weights: {member} could not be downloaded: {_first_line(error)}") from error


def _read_file(path: Path) -> Any:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist, nor is it a torchvision weights name"
        raise CheckpointError(f"weights: {path} {what}")
    read = _safetensors_reader(path) if path.suffix == ".safetensors" else _torch_load
    try:
        return read(path)
    # A damaged or foreign file makes the readers raise almost anything; the cause is the file.
    except Exception as error:
        raise CheckpointError(f"weights: {path} is not a readable checkpoint: {_reason(error)}") from error


def _safetensors_reader(path: Path) -> Callable[[Path], Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(f"weights: {path} needs safetensors: pip install safetensors") from None
    return load_file


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    # Of torch's long texts only the name is kept: they advise weights_only=False, which runs the file's code.
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
        return f"it holds {found[1]}, and only tensors are loaded, for safety; save model.state_dict() alone"
    if isinstance(error, OSError):
        return _first_line(error)
    return "it is damaged or of another kind; expected a file of torch.save or, named .safetensors, of safetensors"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _state_dict(found: Any, source: str) -> State:
    if isinstance(found, Mapping):
        found = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"weights: {source} holds {type(found).__name__}, expected a state dict")
    state = dict(found)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"weights: {source} has {type(value).__name__} under {key!r}, expected tensors by parameter "
                f"name (or a state dict under {', '.join(map(repr, WRAPPERS))})"
            )
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(model: Model, weights: Weights, *, progress: bool = True) -> Model:
    """Loads ``weights`` into ``model`` and returns it; when they do not fit, the model stays as it was.

    Args:
        weights: as for the builders: an enum member or its full name, a path, or a state dict.

    Raises:
        CheckpointError: unreadable weights, missing, unexpected or wrongly shaped entries, or a classifier of
            another size than ``num_classes``.
    """
    state = read_weights(resolve_weights(weights), progress=progress)
    own = model.state_dict()
    # Counters of batches came with PyTorch 0.4.1; older checkpoints lack them, and PyTorch lets them.
    for key, value in own.items():
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
    _check_fit(own, state)
    model.load_state_dict(state, strict=True)
    return model


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
        + "; ".join(f"{len(items)} {what} ({_some(items, sep)})" for what, items, sep in parts if items)
    )


def _fits(own: Tensor, given: Tensor) -> bool:
    # Counters of batches may have been cast with everything else, and are cast back.
    return own.shape == given.shape and (given.is_floating_point() or not own.is_floating_point())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _some(items: list[str], separator: str, limit: int = 3) -> str:
    return separator.join(items[:limit]) + (", ..." if len(items) > limit else "")
