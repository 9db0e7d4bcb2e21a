"""The four backends beside each other, and what they share.

:mod:`.reference` (PyTorch), :mod:`.cpu` (C++) and :mod:`.cuda` (CUDA C++) are here; the fourth, Triton, is
:mod:`effnet_fast.kernels`. :mod:`effnet_fast.dispatch` is the table that chooses among them. Shared: :mod:`.native` loads
the compiled libraries, :mod:`.traffic` counts bytes, :mod:`.network` is what a backend makes a whole network of.
"""
