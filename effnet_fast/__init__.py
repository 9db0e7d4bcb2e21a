"""effnet_fast: fused MBConv kernels for PyTorch."""

from .dispatch import backends, use_backend
from .errors import EffnetFastError

__version__ = "0.1.0"

__all__ = ["EffnetFastError", "__version__", "backends", "use_backend"]
