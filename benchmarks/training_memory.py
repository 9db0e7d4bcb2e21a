"""Bytes autograd keeps for the backward of B0 to B7, as a Markdown table: eager, checkpointed, compiled, fused.

Counted on the meta device (nothing is computed, no GPU needed): every storage that ``saved_tensors_hooks`` sees, once,
parameters and buffers left out. "Checkpointed" is ``torch.utils.checkpoint`` around every block; what the backward
then computes again for one block at a time is not in the count. "Compiled" is what AOTAutograd's min-cut partitioner
keeps (backend ``aot_eager_decomp_partition``: Inductor's decompositions and partitioner); it takes minutes for B7.

    python benchmarks/training_memory.py [--dtype bf16] [--batch 32] [--models b0 b1] [--no-compile] [--json FILE]
    python benchmarks/training_memory.py --show FILE
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import effnet_fast
from effnet_fast.bench.saved import saved_bytes
from effnet_fast.models import VARIANTS
from effnet_fast.nn.mbconv import MBConv

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = {
    "eager": "eager",
    "checkpointed": "eager, checkpointed",
    "compiled": "torch.compile",
    "fused": "fused",
    "recompute": "fused, recompute_expand",
}


def _checkpointed(model: nn.Module) -> nn.Module:
    """``model`` with checkpointing around every block."""
    for block in model.modules():
        if isinstance(block, MBConv):
            block.forward = _through_checkpoint(block.forward)  # type: ignore[method-assign]
    return model


def _through_checkpoint(forward):  # type: ignore[no-untyped-def]
    def run(x: Tensor) -> Tensor:
        # Stochastic depth draws no numbers on the meta device, which has no generator state to keep.
        return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)

    return run


def measure(name: str, dtype: torch.dtype, batch: int, with_compile: bool) -> dict[str, float]:
    """MB per image of every variant of one model, at the resolution it is made for."""
    resolution = VARIANTS[name].resolution
    with torch.device("meta"):
        fused = effnet_fast.create(name).train().to(dtype)
        x = torch.empty(batch, 3, resolution, resolution, dtype=dtype)
    eager = effnet_fast.unpatch(copy.deepcopy(fused))
    found = {"eager": saved_bytes(eager, x)}
    # Blocks with their own forwards cannot be copied any more.
    found["checkpointed"] = saved_bytes(model := _checkpointed(copy.deepcopy(eager)), x)
    del model
    if with_compile:
        torch.compiler.reset()
        compiled = torch.compile(eager, backend="aot_eager_decomp_partition")
        found["compiled"] = saved_bytes(eager, x, compiled)
    with effnet_fast.use_backend("reference"):
        found["fused"] = saved_bytes(fused, x)
        effnet_fast.patch(fused, recompute_expand=True)
        found["recompute"] = saved_bytes(fused, x)
    return {key: value / batch / 1e6 for key, value in found.items()}


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: MB per image, and in brackets the ratio to eager."""
    keys = [key for key in COLUMNS if any(key in row for row in results.values())]
    lines = [f"| model | resolution | {' | '.join(COLUMNS[key] for key in keys)} |"]
    lines.append("|---|--:|" + "--:|" * len(keys))
    for name, row in results.items():
        cells = [
            "" if key not in row else f"{row[key]:.1f} ({row[key] / row['eager']:.3f})"
            if key != "eager"
            else f"{row[key]:.1f}"
            for key in keys
        ]  # fmt: skip
        lines.append(f"| {name} | {VARIANTS[name].resolution} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--models", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="write the results here, after every model")
    parser.add_argument("--show", type=Path, help="measure nothing, print the table of this file")
    arguments = parser.parse_args()
    if arguments.show:
        print(table(json.loads(arguments.show.read_text())["MB per image"]))
        return
    results = {}
    for name in arguments.models:
        results[name] = measure(name, DTYPES[arguments.dtype], arguments.batch, not arguments.no_compile)
        if arguments.json:
            facts = {"torch": torch.__version__, "dtype": arguments.dtype, "batch": arguments.batch}
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(facts | {"MB per image": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
