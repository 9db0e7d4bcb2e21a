"""effnet_fast: fused MBConv kernels for PyTorch.

    import effnet_fast

    model = effnet_fast.b5().cuda()          # drop-in model
    effnet_fast.patch(torchvision_model)     # or patch a model you have
    fast = effnet_fast.optimize(cpu_model, (1, 3, 224, 224))   # or make one ready for inference on a CPU

Importing the package touches no device. See :mod:`effnet_fast.ops` for the building blocks.
"""

# First: the command line can be interrupted while all the rest is imported.
from .system import ctrl_c  # isort: split

ctrl_c.settle()

# Second: in a source tree it says where the kernels are.
from .system import source_tree  # isort: split

from . import models, nn, ops
from .dispatch import backends, use_backend
from .errors import BackendError, CheckpointError, EffnetFastError, UnknownModelError, UnsupportedBlockError
from .inference import load, optimize, save
from .models import (
    b0,
    b1,
    b2,
    b3,
    b4,
    b5,
    b6,
    b7,
    compound_scaling,
    create,
    efficientnet,
    list_models,
)
from .patching import patch, register_block, report, unpatch

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CheckpointError",
    "EffnetFastError",
    "UnknownModelError",
    "UnsupportedBlockError",
    "__version__",
    "b0",
    "b1",
    "b2",
    "b3",
    "b4",
    "b5",
    "b6",
    "b7",
    "backends",
    "compound_scaling",
    "create",
    "efficientnet",
    "list_models",
    "load",
    "models",
    "nn",
    "ops",
    "optimize",
    "patch",
    "register_block",
    "report",
    "save",
    "unpatch",
    "use_backend",
]

source_tree.settle()
del ctrl_c, source_tree
