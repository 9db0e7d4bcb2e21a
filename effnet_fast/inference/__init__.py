"""Inference with everything prepared once: folded, packed, planned."""

from .file import load, save
from .prepare import optimize

__all__ = ["load", "optimize", "save"]
