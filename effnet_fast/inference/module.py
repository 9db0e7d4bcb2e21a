"""What :func:`effnet_fast.optimize` returns: a module that only infers."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from .. import dispatch
from ..data.images import Preset
from ..errors import EffnetFastError
from ..nn.observed import recorded
from .extract import DTYPES
from .folded import FACTS, FORMAT, Folded
from .program import Program, program_of

Model = TypeVar("Model", bound="Inference")


_NOT_RECORDED = (
    "optimize: an optimized model cannot be traced, scripted or exported; export the model it was made from"
)


class Inference(nn.Module):
    """Checks its input and runs without gradients; see :class:`OptimizedModel` and :class:`PatchedCopy`."""

    #: What an image must have; ``None``: left to the network.
    channels: int | None
    #: What is computed in.
    dtype: torch.dtype
    #: What the model calls its images: they may be given by this name too.
    images_name: str = "x"

    def forward(self, x: Tensor | None = None, **others: Any) -> Any:
        x = others.pop(self.images_name, None) if x is None else x
        if recorded(x):
            raise EffnetFastError(_NOT_RECORDED)
        check_input(x, self.channels)
        if torch.is_grad_enabled() and x.requires_grad:
            raise EffnetFastError(
                "optimize: x requires a gradient, an optimized model has none; use torch.no_grad(), x.detach() "
                "or the model it was made from"
            )
        # Not inference_mode: features may go on into something that trains.
        with torch.no_grad():
            return self._infer(x, **others)  # type: ignore[arg-type]

    def _infer(self, x: Tensor, **others: Any) -> Any:
        raise NotImplementedError

    def train(self: Model, mode: bool = True) -> Model:
        """Evaluation mode is the only one.

        Raises:
            EffnetFastError: training mode is asked for; a module that holds this one may train, this one stays.
        """
        if not mode:
            return super().train(False)
        if not _in_passing(nn.Module.train):
            raise EffnetFastError(
                "optimize: an optimized model only infers, it has no training mode; train the model it was made from"
            )
        return self

    def requires_grad_(self: Model, requires_grad: bool = True) -> Model:
        """Without effect where gradients are not asked for.

        Raises:
            EffnetFastError: they are.
        """
        if requires_grad:
            raise EffnetFastError(
                "optimize: an optimized model has no gradients, expected requires_grad_(False), got True; train the "
                "model it was made from"
            )
        return super().requires_grad_(False)

    def __prepare_scriptable__(self) -> NoReturn:
        # What torch.jit.script asks every module, also those inside others.
        raise EffnetFastError(_NOT_RECORDED)

    def _apply(self: Model, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        # What ``to``, ``cuda``, ``half`` and their kind call, with what they do to a tensor.
        probe = torch.empty(0, dtype=self.dtype, device="cpu")
        after = fn(probe)
        if (after.dtype, after.device) == (probe.dtype, probe.device):
            return super()._apply(fn, recurse)
        if not _in_passing(nn.Module._apply):
            raise EffnetFastError(
                f"optimize: an optimized model stays in {probe.dtype} on {probe.device}, for which it was made, got "
                f"{after.dtype} on {after.device}; optimize the model it was made from again (dtype=), on a GPU patch it"
            )
        return self


def _in_passing(method: Callable[..., Any]) -> bool:
    """Whether the caller was called by ``nn.Module``'s ``method``: a module that holds it goes through all it holds."""
    return sys._getframe(2).f_code is method.__code__


def check_input(x: object, channels: int | None) -> None:
    """Refuse what is no batch of images of this kind, naming what was expected.

    Raises:
        EffnetFastError: not a floating point tensor [N, channels, H, W] in fp32 or bf16 on the CPU.
    """
    if not isinstance(x, Tensor):
        raise EffnetFastError(f"optimize: x: expected a Tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise EffnetFastError(
            f"optimize: x: expected a tensor on the CPU, for which the model was made, got {x.device}"
        )
    if x.dtype not in DTYPES:
        raise EffnetFastError(f"optimize: x: expected float32 or bfloat16, got {x.dtype}")
    if x.dim() != 4 or channels not in (None, x.shape[1]) or 0 in x.shape[1:]:
        raise EffnetFastError(
            f"optimize: x: expected [N, {channels or 'C'}, H, W], got shape {list(x.shape)}"
        )


class OptimizedModel(Inference):
    """A whole network as one program.

    It has no parameters and does not train. A deep copy shares the program, which never changes; a pickle takes the
    folded network along, which is packed at the other end. The ``state_dict`` of a module that holds it has nothing of
    it; one of its own is refused.

    Args:
        folded: the network and what belongs to it.
        program: what runs it; ``None``: it is made.
    """

    #: Known to :mod:`effnet_fast.patching` by this: there is nothing in it to patch.
    whole_program = True

    def __init__(self, folded: Folded, program: Program | None = None) -> None:
        super().__init__()
        self.channels, self.dtype, self.folded = folded.channels, folded.dtype, folded
        self.__dict__.update(folded.facts)
        self._program = program or program_of(folded)
        self.eval()

    def _infer(self, x: Tensor, **others: Any) -> Tensor:
        if others:
            raise EffnetFastError(
                f"optimize: an optimized {self.folded.source} takes {self.images_name}, got {', '.join(others)} too"
            )
        # Programs are made for images: of an empty batch only the shape is asked.
        return self._program.run(x) if len(x) else self._program.run(x.new_zeros(1, *x.shape[1:]))[:0]

    def extra_repr(self) -> str:
        runs = "PyTorch's convolutions" if self.backend == "reference" else "native code"
        tail = ", ".join(type(layer).__name__ for layer in self.folded.tail)
        kind = (
            f"{self.folded.source}, {len(self.folded.network.blocks)} blocks, {str(self.dtype)[6:]}, {runs}"
        )
        return f"{kind}, then {tail}" if tail else kind

    @property
    def backend(self) -> str:
        """What runs the program: ``"cpu"`` or ``"reference"``."""
        return self._program.backend

    @property
    def preset(self) -> Preset | None:
        """How photos become its images, where a file told."""
        return self.folded.preset

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of its outputs, where a file told."""
        return self.folded.classes

    def __copy__(self) -> OptimizedModel:
        return type(self)(self.folded, self._program)

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizedModel:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": self.backend, "_format": FORMAT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found = state.pop("_format", None)
        if found != FORMAT:
            raise EffnetFastError(
                f"optimize: an optimized model of another version: expected format {FORMAT}, got {found}; optimize the "
                "model it was made from again"
            )
        wanted = state.pop("_program")
        super().__setstate__(state)
        # What the sender chose, where it is there.
        with dispatch.forcing((wanted, "reference")):
            self._program = program_of(self.folded)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing, for a module that holds this one and gives a ``destination``.

        Raises:
            EffnetFastError: asked for alone; a file of nothing would look like saved weights.
        """
        if destination is None and not args:
            raise EffnetFastError(
                "optimize: an optimized model has no state_dict; take that of the model it was made from"
            )
        return args[0] if destination is None else destination

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise EffnetFastError(
            "optimize: an optimized model loads no state_dict; load it into the model and optimize again"
        )


class PatchedCopy(Inference):
    """A network that no adapter knows, copied, with its MBConv blocks patched, channels_last, without gradients.

    An ordinary module otherwise: ``state_dict`` and pickling are those of the copy in :attr:`model`, whose attributes
    (``config``, ``num_features``, ...) are found here too, and whose ``forward`` gets the other arguments given by name.
    """

    channels = None

    def __init__(self, model: nn.Module, dtype: torch.dtype, blocks: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.dtype, self._blocks = dtype, blocks
        self.images_name = images_name(model)
        self.eval()

    def _infer(self, x: Tensor, **others: Any) -> Any:
        out = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
        with torch.autocast("cpu", enabled=False):
            return _convert(self.model(x.to(self.dtype, memory_format=torch.channels_last), **others), out)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None or name.startswith("_"):
                raise
            return getattr(model, name)

    def extra_repr(self) -> str:
        return f"{self._blocks} blocks patched in a network of another kind, {str(self.dtype)[6:]}"


def _convert(output: Any, dtype: torch.dtype) -> Any:
    if isinstance(output, Tensor):
        return output.to(dtype) if output.is_floating_point() else output
    if isinstance(output, dict):
        # In place: classes of libraries (transformers' ModelOutput) are made and copied in ways of their own.
        for key, value in list(output.items()):
            converted = _convert(value, dtype)
            if converted is not value:
                output[key] = converted
        return output
    if isinstance(output, (list, tuple)):
        items = [_convert(item, dtype) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output


def images_name(model: nn.Module) -> str:
    """What a model's ``forward`` calls its images: its first argument."""
    return next(iter(inspect.signature(model.forward).parameters), "x")


def facts_of(model: nn.Module) -> dict[str, Any]:
    """The attributes of a model that the optimized one has too, copied; and how the images are called."""
    found = {name: vars(model)[name] for name in FACTS if name in vars(model)}
    return copy.deepcopy(found) | {"images_name": images_name(model)}
