"""Inference with everything prepared once: folded, packed, planned."""
