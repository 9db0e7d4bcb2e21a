"""BatchNorm over the batches of several processes, as ``nn.SyncBatchNorm`` computes it.

What is sent is what PyTorch's own module sends, in its order: forward, the process's (mean, invstd, count), gathered; backward,
(sum g, sum g * (z - mean)), summed. A process whose block runs its own modules (a hook that only rank 0 has) therefore still
meets the others. Everything stays on the device: no count is read back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import EffnetFastError
from ..types import BatchNormParamGrad, BatchNormStats

#: Row of a synchronised BatchNorm's statistics that holds how many values of all processes they are of.
JOINT_COUNT = 5


def joint_statistics(
    finalize: Callable[..., BatchNormStats],
    partials: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    group: str,
) -> BatchNormStats:
    """``batch_norm_finalize`` of the partial statistics [P, 3, C] of every process in the group.

    Counts may differ and may be zero. Merged in the order of ranks, so that all processes get the same bits.

    Returns:
        Statistics of six rows, the last (:data:`JOINT_COUNT`) the number of values.
    """
    if partials.requires_grad:
        raise EffnetFastError(
            "gradients of gradients through a synchronised BatchNorm are not defined, as for nn.SyncBatchNorm"
        )
    processes = _resolve(group)
    channels = partials.shape[2]
    local = finalize(partials, None, None, eps)
    count = partials[:, 0, :1].sum(0)
    message = torch.cat([local.mean, local.norm.invstd, count])
    # Of no values: zeros, as PyTorch sends them, whatever the kernels made of it.
    message = torch.where(count > 0, message, torch.zeros_like(message))
    gathered = message.new_empty(dist.get_world_size(processes), message.numel())
    dist.all_gather(list(gathered.unbind(0)), message, processes)
    means, invstds, counts = gathered.split([channels, channels, 1], dim=1)
    var = (invstds.square().reciprocal() - eps).clamp_min(0)
    m2 = torch.where(counts > 0, var * counts, torch.zeros_like(var))
    rows = torch.stack([counts.expand_as(means), means, m2], dim=1)
    joint = finalize(rows, weight, bias, eps)
    return BatchNormStats(torch.cat([joint.vectors, counts.sum(0, keepdim=True).expand(1, channels)]))


def joint_backward(
    finalize: Callable[..., BatchNormParamGrad], sums: Tensor, count: int, stats: BatchNormStats, group: str
) -> BatchNormParamGrad:
    """``batch_norm_backward_finalize`` with the sums of every process; ``count`` is this process's.

    The parameters' gradients stay this process's own: data parallelism averages them with all others.
    """
    local = sums.sum(0)
    invstd = stats.norm.invstd
    message = torch.cat([local[0], local[1] / invstd])
    dist.all_reduce(message, group=_resolve(group))
    dbias, dweight = message.view(2, -1).unbind(0)
    # The kernel divides by its own count: scale, so that the joint one divides.
    share = count / stats.vectors[JOINT_COUNT]
    joint = torch.stack([dbias * share, dweight * invstd * share])
    return finalize(joint[None], count, stats, True)._replace(params=local)


def _resolve(group: str) -> Any:
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(group)  # type: ignore[arg-type]
