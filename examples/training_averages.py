"""Averages over steps, of weights and of BatchNorm's statistics, that are worth something in short runs too.

Both begin with what a network is before it has learnt anything. At a decay of 0.999 the first weights are still half of the
average after 700 steps, and running variances that began at 1 hide activations which are a thousandth of that.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import swa_utils


def averaged_model(model: nn.Module, decay: float) -> swa_utils.AveragedModel:
    """A copy of ``model`` that follows it: over the last tenth of the steps at first, later at ``decay``."""

    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        done = float(updates)
        swa_utils.get_ema_multi_avg_fn(min(decay, (1 + done) / (10 + done)))(averaged, current, updates)

    return swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)


class Momentum:
    """BatchNorm's momentum, fitted to a run: the mean of all steps so far, then at least the last tenth of the run.

    Args:
        model: whose BatchNorms are set; what they come with is the least.
        steps: of the whole run.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
        norms = [module for module in model.modules() if isinstance(module, kinds)]
        self.norms = [(norm, norm.momentum) for norm in norms if norm.momentum is not None]
        self.least = 10 / steps

    def set(self, step: int) -> None:
        """Before a step, counted from 0."""
        for norm, own in self.norms:
            momentum = min(1.0, max(own, self.least, 1 / (step + 1)))
            if norm.momentum != momentum:
                norm.momentum = momentum
