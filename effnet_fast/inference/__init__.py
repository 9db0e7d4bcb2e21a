"""Inference with everything prepared once: folded, packed, planned."""

from .prepare import optimize

__all__ = ["optimize"]
