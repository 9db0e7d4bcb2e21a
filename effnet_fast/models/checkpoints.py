"""Checkpoints as training scripts leave them: read without running anything of theirs, the network's tensors taken out."""

from __future__ import annotations

import builtins
import pickle
import re
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

#: Keys under which training scripts keep averaged weights; what such scripts evaluate and publish.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
#: Keys under which they keep the weights they train.
TRAINED = ("state_dict", "model_state_dict", "model")
#: Put before every key by DataParallel, DistributedDataParallel and AveragedModel.
PREFIX = "module."
#: Put into keys by wrappers of modules: torch.compile, FSDP, checkpoint_wrapper.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: The stem's weight in the names of torchvision (and this package), timm, efficientnet_pytorch.
STEMS = ("features.0.0.weight", "conv_stem.weight", "_conv_stem.weight")

#: Parts of the standard library of which only data is pickled.
_DATA = {"argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "pathlib", "uuid"}
_MORE_DATA = {("types", "SimpleNamespace"), ("functools", "partial")}


class Checkpoint(dict[str, Tensor]):
    """A state dict without wrappers and prefixes; it remembers where it came from.

    Attributes:
        source: for messages: a path, an enum member, ``weights``.
        architecture: the model's name that timm's scripts keep beside the weights, or empty.
        notes: what a reader should know of how it was understood, as parts of a sentence.
    """

    source: str = "weights"
    architecture: str = ""
    notes: list[str]


def read_file(path: Path) -> Any:
    """What a file of ``torch.save`` or, named ``.safetensors``, of safetensors holds.

    Classes that are not PyTorch's are not looked up: empty objects stand for theirs, so arguments, optimizers and
    callbacks beside the weights do no harm and cannot run code.

    Raises:
        CheckpointError: no such file, not a checkpoint, or a pickle that asks for more than data.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist, nor is it a torchvision weights name"
        raise CheckpointError(f"weights: {path} {what}")
    read = _safetensors_reader(path) if path.suffix == ".safetensors" else _torch_load
    try:
        return read(path)
    except MemoryError:
        raise CheckpointError(f"weights: {path} does not fit into this machine's memory") from None
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
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # Files of before PyTorch 1.6, or damaged ones, of which torch.load says more.
    except Exception:
        unknown = []
    stand_ins: list[Any] = [(_stand_in(name), name) for name in unknown if _only_data(name)]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _only_data(name: str) -> bool:
    """Whether an empty object may stand for a global of this name; the rest of the standard library does things."""
    module, _, last = name.rpartition(".")
    # Pickles name the standard library as Python 2 did.
    module = IMPORT_MAPPING.get(module, module)
    root = module.split(".")[0]
    if root == "builtins":
        return isinstance(getattr(builtins, last, None), type)
    return root not in sys.stdlib_module_names or root in _DATA or (module, last) in _MORE_DATA


class _StandIn:
    """An object of a class that was not looked up: nothing of it is kept."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str) -> type:
    """Of dictionaries of some kind the entries are kept; torch.load fills plain ones only."""
    if name.lower().endswith("dict"):
        return type(name, (), {"__new__": lambda cls, *args, **kwargs: {}})
    return type(name, (_StandIn,), {})


def _reason(error: Exception) -> str:
    # Of torch's long texts only the name is kept: they advise weights_only=False, which runs the file's code.
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
        return f"it holds {found[1]}, and only tensors are loaded, for safety; save model.state_dict() alone"
    if isinstance(error, OSError):
        return first_line(error)
    return "it is damaged or of another kind; expected a file of torch.save or, named .safetensors, of safetensors"


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def state_dict(found: Any, source: str) -> Checkpoint:
    """The network's tensors in what a file or a caller gave.

    Averaged weights are preferred where both are there. Prefixes common to all of the network's entries are taken off.

    Raises:
        CheckpointError: no state dict, several networks, or entries that are not tensors.
    """
    if isinstance(found, Checkpoint):
        return found
    if isinstance(found, _StandIn):
        raise CheckpointError(
            f"weights: {source} is not a readable checkpoint: it holds {type(found).__name__}, and only tensors are "
            "loaded, for safety; save model.state_dict() alone"
        )
    if not isinstance(found, Mapping):
        raise CheckpointError(f"weights: {source} holds {type(found).__name__}, expected a state dict")
    result = Checkpoint()
    result.source, result.notes = source, []
    architecture = found.get("arch")
    result.architecture = architecture if isinstance(architecture, str) else ""
    entries = _strip(_unwrap(found, result.notes), source, result.notes)
    for key, value in entries.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"weights: {source} has {type(value).__name__} under {key!r}, expected tensors by parameter "
                f"name (or a state dict under {', '.join(map(repr, TRAINED))})"
            )
    result.update(entries)
    return result


def _unwrap(found: Mapping[Any, Any], notes: list[str]) -> Mapping[Any, Any]:
    while True:
        inside = [key for key in (*AVERAGED, *TRAINED) if _holds_tensors(found.get(key))]
        if not inside:
            return found
        if inside[0] in AVERAGED and len(inside) > 1:
            notes.append(
                f"it holds averaged weights under {inside[0]!r}, which were taken, and others under {inside[1]!r}"
            )
        found = found[inside[0]]


def _holds_tensors(found: Any) -> bool:
    if not isinstance(found, Mapping):
        return False
    wrapped = (found.get(key) for key in (*AVERAGED, *TRAINED))
    return any(isinstance(value, Tensor) for value in found.values()) or any(map(_holds_tensors, wrapped))


def _strip(found: Mapping[Any, Any], source: str, notes: list[str]) -> dict[Any, Any]:
    state: dict[Any, Any] = {}
    for key, value in found.items():
        name = key
        for part in WRAPPERS if isinstance(key, str) else ():
            name = name.replace(part, "")
        if name in state:
            raise CheckpointError(f"weights: {source} has two entries for {name!r}, of which one is {key!r}")
        state[name] = value
    prefixes = _prefixes(state)
    if len(prefixes) > 1:
        names = ", ".join(repr(prefix) for prefix in prefixes)
        raise CheckpointError(
            f"weights: {source} holds {len(prefixes)} networks, with the prefixes {names}; expected the state dict of one"
        )
    prefix = prefixes[0]
    inside = {key: value for key, value in state.items() if not prefix or str(key).startswith(prefix)}
    if prefix.replace(PREFIX, ""):
        notes.append(f"the prefix {prefix!r} was taken off its names")
    # AveragedModel's counter belongs to it.
    lost = [str(key) for key in state if key not in inside and not str(key).endswith("n_averaged")]
    if lost:
        notes.append(f"{len(lost)} entries outside of {prefix!r} were left out ({some(lost)})")
    return {key.removeprefix(prefix) if prefix else key: value for key, value in inside.items()}


def _prefixes(state: Mapping[Any, Any]) -> list[str]:
    """What stands before the names of each network in there."""
    keys = [key for key in state if isinstance(key, str)]
    found = [
        key.removesuffix(stem) for key in keys for stem in STEMS if key == stem or key.endswith("." + stem)
    ]
    if found:
        return found
    # Of a network of other names.
    prefix, names = "", [key for key in keys if key != "n_averaged"]
    while names and all(key.startswith(prefix + PREFIX) for key in names):
        prefix += PREFIX
    return [prefix]


def some(items: list[str], separator: str = ", ", limit: int = 3) -> str:
    return separator.join(items[:limit]) + (", ..." if len(items) > limit else "")
