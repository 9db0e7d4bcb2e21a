"""Two gloo processes on the CPU: start them, run jobs by name, bring their results back, leave none behind."""

from __future__ import annotations

import datetime
import importlib
import multiprocessing
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2


def _process(rank: int, folder: Path, module: str, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    # A file, not a port: nothing to collide with. Waiting for a process that died ends before the parent's patience does.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=300),
    )
    results: dict[str, Any] = {}
    for name in jobs:
        torch.manual_seed(1000 + rank)
        try:
            results[name] = getattr(importlib.import_module(module), name)(rank)
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def run(folder: Path, module: str, jobs: list[str], patience: float = 500) -> list[dict[str, Any]]:
    """For each rank, job -> what ``module.job(rank)`` returned, or the text of its exception."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_process, args=(rank, folder, module, jobs), daemon=True)
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} process(es) did not finish within {patience:.0f} s"
    files = [folder / f"rank{rank}.pt" for rank in range(WORLD)]
    assert all(file.exists() for file in files), [process.exitcode for process in processes]
    return [torch.load(file, weights_only=False) for file in files]
