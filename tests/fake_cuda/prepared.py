"""Jobs on what is prepared once: the native call of a block in inference, and Triton's launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import effnet_fast
from effnet_fast.backend import traffic
from effnet_fast.backend.cuda import block as cuda_block

from . import blocks, steering

#: What a call of the block does: the native call's answers (launched or not), and which tensors it was given.
Seen = list[tuple[bool, tuple[int, ...]]]


def _watch() -> Seen:
    """Every native call from now on."""
    seen: Seen = []
    ops = cuda_block._ops()
    run = ops.mbconv_run

    def watched(x: Tensor, tensors: list[Tensor], prepared: Tensor) -> Tensor:
        y = run(x, tensors, prepared)
        seen.append((y.dim() == 4, tuple(t.data_ptr() for t in tensors)))
        return y  # type: ignore[no-any-return]

    cuda_block._ops.cache_clear()
    cuda_block._ops = lambda: type(
        "Overloads", (), {"mbconv_prepare": ops.mbconv_prepare, "mbconv_run": watched}
    )  # type: ignore[assignment]
    return seen


def changes() -> dict[str, dict[str, Any]]:
    """Something about a block changes after it has run; what the next two calls do is marked and told.

    Returns, by change: ``native``, whether the second call after it was the native one; ``current``, whether that was given
    the block's tensors of now; ``prepared``, whether something was prepared for it.
    """
    block = blocks.block().eval().to(torch.bfloat16)
    x = blocks.image().to(torch.bfloat16)
    expand, depthwise, excite, project = block.block
    seen = _watch()
    told: dict[str, dict[str, Any]] = {}

    def call(given: Tensor) -> None:
        with torch.inference_mode():
            block(given)

    def after(name: str, change: Callable[[], Any], given: Tensor = x) -> None:
        change()
        before = sum(map(len, cuda_block._prepared.values()))
        call(given)
        seen.clear()
        steering.mark(name)
        call(given)
        steering.mark("")
        native = bool(seen) and seen[-1][0]
        vectors = [v for part in (expand, depthwise, project) for v in (part[0].weight, *_vectors(part[1]))]
        layers = (excite.fc1.weight, excite.fc1.bias, excite.fc2.weight, excite.fc2.bias)
        now = tuple(t.data_ptr() for t in (*vectors, *layers) if t is not None)
        told[name] = {
            "native": native,
            "current": native and seen[-1][1] == now,
            "prepared": sum(map(len, cuda_block._prepared.values())) - before,
        }

    def replaced(module: nn.Module, name: str, value: Tensor) -> None:
        setattr(module, name, nn.Parameter(value.clone()))

    def shifted(t: Tensor) -> None:
        """The same values one element further on: not at a multiple of 16 bytes."""
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
        t.data = memory[1:].view(t.shape).copy_(t)

    def strided(t: Tensor) -> None:
        t.data = t.repeat_interleave(2)[::2]

    after("nothing", lambda: None)
    after("weight replaced", lambda: replaced(project[0], "weight", project[0].weight))
    after("weight's data replaced", lambda: setattr(expand[0].weight, "data", expand[0].weight.clone()))
    after("weight written", lambda: expand[0].weight.data.mul_(2))
    after("statistics replaced", lambda: setattr(depthwise[1], "running_mean", depthwise[1].running_mean + 1))
    after("bias removed", lambda: setattr(excite.fc1, "bias", None))
    after("eps", lambda: setattr(project[1], "eps", 0.5))
    after("BatchNorms in fp32", lambda: [part[1].float() for part in (expand, depthwise, project)])
    after("one vector in bf16", lambda: setattr(depthwise[1].weight, "data", depthwise[1].weight.bfloat16()))
    after("all in bf16 again", lambda: block.to(torch.bfloat16))
    after("size", lambda: None, blocks.image(size=9).to(torch.bfloat16))
    after("layout", lambda: None, torch.zeros(4, 80, 14, 14, device="cuda", dtype=torch.bfloat16))
    after("misaligned", lambda: shifted(project[1].bias))
    after("aligned again", lambda: setattr(project[1].bias, "data", project[1].bias.clone()))
    after("strided", lambda: strided(expand[1].bias))
    after("dense again", lambda: setattr(expand[1].bias, "data", expand[1].bias.clone()))
    hook = expand[0].register_forward_hook(lambda *_: None)
    after("hook", lambda: None)
    after("hook removed", hook.remove)
    after("BatchNorm in training", lambda: depthwise[1].train())
    after("and out of it", lambda: depthwise[1].eval())
    norm = project[1]
    affine, statistics = ("weight", "bias"), ("running_mean", "running_var")
    kept = [getattr(norm, name) for name in (*affine, *statistics)]
    after("affine gone", lambda: [setattr(norm, name, None) for name in affine])
    # As many vectors of the same shapes as before, but others.
    after(
        "affine for statistics",
        lambda: [
            setattr(norm, *item) for item in zip((*affine, *statistics), (*kept[:2], None, None), strict=True)
        ],
    )
    after("both again", lambda: [setattr(norm, *item) for item in zip(statistics, kept[2:], strict=True)])
    after(
        "statistics gone",
        lambda: (setattr(project[1], "running_mean", None), setattr(project[1], "running_var", None)),
    )
    return told


def _vectors(bn: nn.Module) -> tuple[Tensor | None, ...]:
    return bn.weight, bn.bias, bn.running_mean, bn.running_var  # type: ignore[return-value]


def listeners() -> dict[str, Any]:
    """Who listens to single launches hears them; other backends are launched where they are asked for."""
    from triton import knobs

    call = blocks.call_of("inference", "bf16")
    call()
    seen = _watch()
    call()
    told: dict[str, Any] = {"native calls": len(seen)}
    with traffic.count_traffic() as counted:
        call()
    told["counted"] = sorted(launch.kernel for launch in counted.launches)
    heard: list[str] = []
    hook = lambda metadata: heard.append(metadata.get()["name"])  # noqa: E731
    knobs.runtime.launch_enter_hook.add(hook)
    call()
    knobs.runtime.launch_enter_hook.remove(hook)
    told["heard"] = heard
    with effnet_fast.use_backend("triton"):
        call()
        steering.mark("triton")
        call()
        steering.mark("")
    told["native calls before and after"] = len(seen)
    call()
    told["native calls at the end"] = len(seen)
    return told


def specializations() -> list[str]:
    """Differences between what a prepared launch runs and what Triton's own launch would, over dtypes, alignments, GPUs."""
    from effnet_fast.kernels import batch_norm, batch_norm_kernels, launch

    wrong = []
    kernel = batch_norm_kernels.batch_norm_fold_kernel

    def vector(device: int, dtype: torch.dtype, offset: int) -> Tensor:
        return torch.ones(112, dtype=dtype, device=f"cuda:{device}")[offset : offset + 96]

    def all_functions() -> set[int]:
        meta = tuple(launch.config("batch_norm_fold", statistics).items())
        block = dict(meta)["BLOCK_N"]
        prepared = launch._prepare(kernel, -(-96 // block), (1e-3, 96), meta)
        return {entry[1] for entry in prepared._compiled.values()}

    for device in range(torch.cuda.device_count()):
        statistics = vector(device, torch.float32, 0)
        for dtype in (torch.float32, torch.bfloat16):
            for offset in (0, 1, 4, 8):
                for weight in (None, vector(device, dtype, offset)):
                    tensors = (weight, vector(device, dtype, 0), statistics, vector(device, dtype, offset))
                    for _ in range(2):
                        batch_norm.batch_norm_fold(*tensors, 1e-3)  # type: ignore[arg-type]
                    out = torch.empty(5, 96, device=f"cuda:{device}")
                    with torch.cuda.device(device):
                        own = kernel[(1,)](
                            *(*tensors, out, 1e-3, 96),
                            **launch.config("batch_norm_fold", statistics),
                            **launch._COMPILER,
                        )
                    if own.function not in all_functions():
                        wrong.append(f"cuda:{device} {dtype} offset {offset} weight {weight is not None}")
    return wrong


def parameters() -> list[tuple[str, int, int]]:
    """(kernel, parameters in its PTX, parameters that the native launch passes) for every kernel of a block's native call."""
    from effnet_fast.kernels import launch

    found = []
    native = launch.Prepared.native

    def watched(self: Any, tensors: Any, slots: Any) -> Any:
        words = native(self, tensors, slots)
        compiled = self.kernel.warmup(
            *(*tensors, *self.scalars), grid=(self.programs,), **self.meta, **launch._COMPILER
        )
        entry = compiled.asm["ptx"].split(".entry")[1].split(")")[0]
        found.append((self.kernel.fn.__name__, entry.count(".param"), (len(words) - 4) // 2))
        return words

    launch.Prepared.native = watched  # type: ignore[method-assign]
    for dtype in ("bf16", "autocast"):
        blocks.call_of("inference", dtype)()
    launch.Prepared.native = native  # type: ignore[method-assign]
    return found
