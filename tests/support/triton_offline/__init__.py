"""Triton's kernels compiled without a GPU, for every architecture, and what the compiler made of them."""
