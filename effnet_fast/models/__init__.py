"""EfficientNet B0 to B7 with torchvision's parameters, compound scaling, weights and cost counting."""

from .config import VARIANTS, Stage, Variant, list_models, scaled_stages
from .counting import Count, ModelSummary, StageSummary, count, summarize, summarize_all
from .efficientnet import EfficientNet, b0, b1, b2, b3, b4, b5, b6, b7, create, efficientnet
from .scaling import CompoundScaling, compound_scaling, round_filters, round_repeats
from .weights import load_weights, rename_weights

__all__ = [
    "VARIANTS",
    "CompoundScaling",
    "Count",
    "EfficientNet",
    "ModelSummary",
    "Stage",
    "StageSummary",
    "Variant",
    "b0",
    "b1",
    "b2",
    "b3",
    "b4",
    "b5",
    "b6",
    "b7",
    "compound_scaling",
    "count",
    "create",
    "efficientnet",
    "list_models",
    "load_weights",
    "rename_weights",
    "round_filters",
    "round_repeats",
    "scaled_stages",
    "summarize",
    "summarize_all",
]
