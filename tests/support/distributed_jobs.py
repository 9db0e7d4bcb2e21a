"""What the processes of tests/test_distributed.py do; the tests there compare what these functions return."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from patched_blocks import shake_batch_norms, torchvision_block
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import effnet_fast
from effnet_fast import use_backend

#: Images of each process: not the same number.
SPLIT = (3, 2)
BACKENDS = {"reference": torch.float64, "cpu": torch.float32}


def blocks(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The same in every process: a block of every form, stock."""
    torch.manual_seed(0)
    forms = ({"expand": 1, "kernel": 3}, {}, {"stride": 2, "cout": 12})
    return nn.Sequential(*(torchvision_block(p=0.0, **form) for form in forms)).to(dtype)


def images(dtype: torch.dtype = torch.float64, split: tuple[int, ...] = SPLIT, size: int = 9) -> list[Tensor]:
    """Each process's images."""
    torch.manual_seed(1)
    return list(torch.randn(sum(split), 8, size, size, dtype=torch.float64).to(dtype).split(split))


def outcome(
    model: nn.Module, x: Tensor, steps: int = 1, forward: Callable[..., Tensor] | None = None
) -> dict:
    """Outputs, gradients and buffers after a few forwards and backwards of a loss that sums over images."""
    for parameter in model.parameters():
        parameter.grad = None
    for _ in range(steps):
        leaf = x.clone().requires_grad_()
        y = (forward or model)(leaf)
        (y.square() * torch.linspace(0.5, 1.5, y[:1].numel(), dtype=y.dtype).view_as(y[:1])).sum().backward()
    result = {"y": y.detach(), "dx": leaf.grad}
    grads = {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return result | grads | {f"buffer {n}": b.clone() for n, b in model.named_buffers()}


def synchronised(model: nn.Module, group: Any = None) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(effnet_fast.patch(model), group)


def data_parallel(rank: int) -> dict[str, Any]:
    results = {}
    for backend, dtype in BACKENDS.items():
        # Wrapped first: DistributedDataParallel refuses SyncBatchNorm on the CPU.
        wrapped = DistributedDataParallel(effnet_fast.patch(blocks(dtype)))
        synchronised(wrapped.module)
        with use_backend(backend):
            results[backend] = outcome(wrapped.module, images(dtype)[rank], forward=wrapped)
            results[f"{backend} report"] = effnet_fast.report(wrapped.module).as_dicts()
    return results


def layouts(rank: int) -> dict[str, Any]:
    """A network in channels_last under DistributedDataParallel: what it warns of, and its gradients."""
    results = {}
    for kind in ("stock", "fused"):
        torch.manual_seed(0)
        model = effnet_fast.efficientnet(width_mult=0.25, depth_mult=0.3, num_classes=5, dropout=0.0)
        model = shake_batch_norms(model).eval().double().to(memory_format=torch.channels_last)
        if kind == "stock":
            effnet_fast.unpatch(model)
        wrapped = DistributedDataParallel(model)
        x = images(torch.float64, size=32)[rank][:, :3]
        with use_backend("reference"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # PyTorch says it once a process otherwise.
            torch.set_warn_always(True)
            results[kind] = outcome(model, x, forward=wrapped)
            torch.set_warn_always(False)
        results[f"{kind} warnings"] = [str(w.message).splitlines()[0] for w in caught]
    return results


def _momentum_none(model: nn.Module) -> None:
    for bn in _norms(model):
        bn.momentum = None


def _norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _frozen(model: nn.Module) -> None:
    for bn in _norms(model)[::2]:
        bn.eval()


def _not_affine(model: nn.Module) -> None:
    for bn in _norms(model):
        bn.weight = bn.bias = None


def _not_tracking(model: nn.Module) -> None:
    for bn in _norms(model):
        bn.track_running_stats = False
        bn.running_mean = bn.running_var = bn.num_batches_tracked = None


#: name -> (change made to the model, each process's images, their size)
VARIANTS: dict[str, tuple[Callable[[nn.Module], object], tuple[int, int], int]] = {
    "plain": (lambda model: None, SPLIT, 9),
    "momentum-none": (_momentum_none, SPLIT, 9),
    "not-affine": (_not_affine, SPLIT, 9),
    "not-tracking": (_not_tracking, SPLIT, 9),
    "frozen": (_frozen, SPLIT, 9),
    "eval": (lambda model: model.eval(), SPLIT, 9),
    "no-image-in-one": (lambda model: None, (4, 0), 9),
    "one-value-each": (lambda model: None, (1, 1), 1),
}


def variants(rank: int) -> dict[str, Any]:
    results = {}
    for name, (change, split, size) in VARIANTS.items():
        model = synchronised(blocks())
        change(model)
        with use_backend("reference"):
            results[name] = outcome(model, images(split=split, size=size)[rank], steps=2)
    return results


def groups(rank: int) -> dict[str, Any]:
    """A group of one process (every process must help to make every group), and a second group of all."""
    alone = [dist.new_group([other]) for other in range(2)][rank]
    everyone = dist.new_group([0, 1])
    results = {}
    for name, group in (("alone", alone), ("everyone", everyone)):
        with use_backend("reference"):
            results[name] = outcome(synchronised(blocks(), group), images()[rank])
    return results


def compiled(rank: int) -> dict[str, Any]:
    model = synchronised(blocks())
    with use_backend("reference"):
        program = torch.compile(model, backend="aot_eager", fullgraph=True)
        return outcome(model, images()[rank], forward=program)


def checkpointed(rank: int) -> dict[str, Any]:
    model = synchronised(blocks())
    with use_backend("reference"):
        return outcome(model, images()[rank], forward=lambda x: checkpoint(model, x, use_reentrant=False))


def _stand_ins() -> dict[str, Callable[..., Any]]:
    """PyTorch's kernels of SyncBatchNorm, which it has for GPUs only, as formulas."""

    def wide(v: Tensor) -> Tensor:
        return v[None, :, None, None]

    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + eps).rsqrt()

    def gather(x, means, invstds, running_mean, running_var, momentum, eps, counts):  # type: ignore[no-untyped-def]
        counts = counts[:, None]
        mean = (means * counts).sum(0) / counts.sum()
        var = ((invstds**-2 - eps + (means - mean) ** 2) * counts).sum(0) / counts.sum()
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
        return mean, (var + eps).rsqrt()

    def elements(x, weight, bias, mean, invstd, eps):  # type: ignore[no-untyped-def]
        return (x - wide(mean)) * wide(invstd * weight) + wide(bias)

    def reduce(dy, x, mean, invstd, weight, *needs):  # type: ignore[no-untyped-def]
        centred = (dy * (x - wide(mean))).sum((0, 2, 3))
        return dy.sum((0, 2, 3)), centred, centred * invstd, dy.sum((0, 2, 3))

    def backward_elements(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):  # type: ignore[no-untyped-def]
        count = counts.sum()
        inner = dy - wide(sum_dy / count) - (x - wide(mean)) * wide(invstd**2 * sum_dy_xmu / count)
        return inner * wide(invstd * weight)

    return {
        "batch_norm_stats": stats,
        "batch_norm_gather_stats_with_counts": gather,
        "batch_norm_elemt": elements,
        "batch_norm_backward_reduce": reduce,
        "batch_norm_backward_elemt": backward_elements,
    }


def one_process_eager(rank: int) -> dict[str, Any]:
    """Rank 1 has a hook inside each block and so runs PyTorch's own SyncBatchNorm; rank 0 runs fused."""
    model = synchronised(blocks())
    if rank == 1:
        for block in model:
            block.block[0].register_forward_hook(lambda *_: None)
    # The device check passes for the CPU when the CPU is called a private backend.
    cpu_too = mock.patch.object(torch._C, "_get_privateuse1_backend_name", return_value="cpu")
    with use_backend("reference"), mock.patch.multiple(torch, **_stand_ins()), cpu_too:
        return outcome(model, images()[rank])


def fully_sharded(rank: int) -> dict[str, Any]:
    """FSDP2: patched before and after sharding, each block or the model as one piece."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh("cpu", (2,))
    results: dict[str, Any] = {}
    for order in ("before", "after"):
        for pieces in ("blocks", "model"):
            model: nn.Module = blocks()
            if order == "before":
                effnet_fast.patch(model, strict=False)
            for block in model if pieces == "blocks" else ():
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            if order == "after":
                effnet_fast.patch(model, strict=True)
            seen: list[str] = []
            for block in model:
                # After FSDP's own hook, which gathers the weights.
                block.register_forward_pre_hook(
                    lambda block, _, seen=seen: seen.append(effnet_fast.report(block).rows[0].state)
                )
            with use_backend("reference"):
                result = outcome(model, images()[rank])
            whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in result.items()}
            outside = effnet_fast.report(model)
            effnet_fast.unpatch(model)
            kept = [isinstance(block, FSDPModule) for block in model]
            stock = [row.reason for row in effnet_fast.report(model).rows]
            results[f"{order} {pieces}"] = {
                "result": whole,
                "in forward": seen,
                "outside": [row.state for row in outside.rows],
                "unpatched": (kept, stock, type(model[0]).__name__),
            }
    return results
