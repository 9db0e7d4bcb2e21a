"""Triton kernels, installed and imported as ``effnet_fast.kernels``."""

# With the repository's root on sys.path a plain `import kernels` would find this folder: a second copy of every
# kernel, in front of the PyPI package that has the name.
if __name__ == "kernels":
    raise ImportError(
        "this folder is effnet_fast.kernels: use `import effnet_fast.kernels`, not `import kernels`"
    )
