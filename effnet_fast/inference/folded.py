"""What an optimized model is made of, whatever runs it: what its pickles and its files hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..backend.network import Network
from ..data.images import Preset

#: Of the records below and of :class:`Network`'s; a new number where older versions would read something else.
FORMAT = 1

#: What users read of libraries' models.
FACTS = (
    *("config", "default_cfg", "pretrained_cfg", "num_classes", "num_features", "head_hidden_size"),
    *("in_chans", "feature_info"),
)


class Folded(NamedTuple):
    """A folded network and what belongs to it."""

    network: Network
    #: To compute in.
    dtype: torch.dtype
    #: Whether pooled features keep the shape [N, C, 1, 1].
    keep_dims: bool
    #: The class of the model it came from.
    source: str
    #: Layers after the network, which run their own code.
    tail: tuple[nn.Module, ...] = ()
    #: Attributes of the model it came from that the optimized one has too: some of :data:`FACTS`, and ``images_name``.
    facts: dict[str, Any] = {}  # noqa: RUF012 (never written)
    #: How photos become images, or ``None`` where nobody said.
    preset: Preset | None = None
    #: Names of the outputs, or ``None``.
    classes: tuple[str, ...] | None = None

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.network.stem.weight.shape[1]
