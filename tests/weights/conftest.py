"""The state of a model whose every tensor tells."""

import pytest
import torch
from weight_states import CLASSES

from effnet_fast import models


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    state = models.b0(num_classes=CLASSES).state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        elif key.endswith("num_batches_tracked"):
            value.fill_(5)
    return state
