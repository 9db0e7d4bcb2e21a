"""Bytes autograd keeps for the backward of B0 to B7, stock and fused, as a Markdown table.

Counted on the meta device (nothing is computed): every storage that ``saved_tensors_hooks`` sees, once, parameters and
buffers left out.

    python benchmarks/training_memory.py [--dtype bf16]
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

import effnet_fast
from effnet_fast.models import VARIANTS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def saved_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes kept between forward and backward, besides what the model holds anyway."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        # Kept, so that no later storage gets a counted one's address.
        alive.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), effnet_fast.use_backend("reference"):
        model(x)
    return sum(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    dtype = DTYPES[parser.parse_args().dtype]
    print("| model | resolution | stock, MB per image | fused, MB per image | ratio |")
    print("|---|--:|--:|--:|--:|")
    batch = 2
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            fused = effnet_fast.create(name).train().to(dtype)
            stock = effnet_fast.unpatch(copy.deepcopy(fused))
            x = torch.empty(batch, 3, variant.resolution, variant.resolution, dtype=dtype)
        before, after = (saved_bytes(model, x) / batch / 1e6 for model in (stock, fused))
        print(f"| {name} | {variant.resolution} | {before:.1f} | {after:.1f} | {after / before:.3f} |")


if __name__ == "__main__":
    main()
