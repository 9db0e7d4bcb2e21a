"""The launches of real networks, B0 to B7 at several batches, recorded on meta tensors and compiled offline.

:mod:`.coverage` has every variant of every kernel once, at small sizes; a compiler does not treat all sizes alike (an
argument of 1 is a constant, a multiple of 16 is known to be one), and loops that run once there run often here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from effnet_fast.kernels import launchers, tuning
from effnet_fast.kernels.launch import intercept

from effnet_fast import dispatch
from effnet_fast.bench import tuner
from effnet_fast.models.config import VARIANTS, Stage, scaled_stages
from effnet_fast.ops import conv_bn_act_kernels as layers
from effnet_fast.ops import mbconv_kernels as blocks
from effnet_fast.ops.mbconv_backward import training_backward
from effnet_fast.ops.mbconv_types import BatchNorm, Needs
from effnet_fast.types import Running
from triton_offline.compiler import Launch, Report, compile_launch, specialization

MODELS = tuple(VARIANTS)
BATCHES = (1, 32, 256)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: "frozen": a training step with the BatchNorms in inference mode.
MODES = ("training", "frozen", "inference")


class Case(NamedTuple):
    """A launch that compiles to code of its own, and where it was first met."""

    launch: Launch
    where: str


def cases(
    capability: int,
    models: tuple[str, ...] = MODELS,
    batches: tuple[int, ...] = BATCHES,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> list[Case]:
    """Every distinct specialization that calls of these networks launch, in every mode."""
    found: dict[Hashable, Case] = {}
    with tuning.pretend(f"sm_{capability}"):
        for dtype in dtypes:
            if dtype == torch.bfloat16 and capability < 80:
                continue
            for model in models:
                for batch in batches:
                    for where, launch in network(model, batch, dtype):
                        place = f"{model} batch {batch} {str(dtype).removeprefix('torch.')} {where}"
                        found.setdefault(specialization(launch), Case(launch, place))
    return list(found.values())


def network(
    model: str, batch: int, dtype: torch.dtype, modes: tuple[str, ...] = MODES
) -> Iterator[tuple[str, Launch]]:
    """(where, launch) of calls of a network: first and repeated blocks of every stage, stem and head."""
    variant = VARIANTS[model]
    size = -(-variant.resolution // 2)
    stages = scaled_stages(variant.width_mult, variant.depth_mult)
    stem = _Layer(3, stages[0].in_channels, 3, 2)
    yield from _named("stem", partial(stem.run, variant.resolution, batch, dtype, modes))
    for number, stage in enumerate(stages, 1):
        yield from _named(f"stage {number}", partial(_block, stage, size, batch, dtype, modes))
        size = -(-size // stage.stride)
        if stage.repeats > 1:
            again = stage._replace(in_channels=stage.out_channels, stride=1)
            yield from _named(f"stage {number}, repeated", partial(_block, again, size, batch, dtype, modes))
    last = stages[-1].out_channels
    yield from _named("head", partial(_Layer(last, 4 * last, 1, 1).run, size, batch, dtype, modes))


def _named(where: str, run: Callable[[], None]) -> Iterator[tuple[str, Launch]]:
    caught: list[Launch] = []
    functions = dispatch.answering(lambda op, **facts: getattr(launchers, op))
    with functions, intercept(lambda *launch: caught.append(Launch(*launch))):
        run()
    for launch in caught:
        # A GPU's own setting for convolutions in fp32; meta tensors know of none.
        if launch.meta.get("PRECISION") == "ieee" and launch.arguments[0].dtype == torch.float32:
            launch = launch._replace(meta={**launch.meta, "PRECISION": "tf32"})
        yield where, launch


def _block(stage: Stage, size: int, batch: int, dtype: torch.dtype, modes: tuple[str, ...]) -> None:
    x, weights, settings = tuner.random_block(stage, size, dtype, batch, torch.device("meta"))
    row_scale = torch.empty(batch, dtype=torch.float32, device="meta") if settings.residual else None
    norms = ("expand_bn", "depthwise_bn", "project_bn")
    have = {name: bn for name in norms if (bn := getattr(weights, name)) is not None}
    frozen = weights._replace(**{name: bn._replace(training=False) for name, bn in have.items()})
    for mode, given in (("training", weights), ("frozen", frozen)):
        if mode in modes:
            running = tuple(_running(getattr(given, name)) for name in norms)
            y, saved = blocks.training_forward(x, given, settings, row_scale, running)  # type: ignore[arg-type]
            needs = Needs(True, True, True, True)
            learnt = (weights.expand, weights.depthwise, weights.project)
            training_backward(y, x, saved, given, settings, row_scale, needs, learnt)
    if "inference" in modes:
        blocks.inference(x, frozen, settings, None)


class _Layer(NamedTuple):
    """A convolution between input and blocks, or between blocks and pool."""

    cin: int
    cout: int
    kernel: int
    stride: int

    def run(self, size: int, batch: int, dtype: torch.dtype, modes: tuple[str, ...]) -> None:
        last = torch.channels_last
        x = torch.empty((batch, self.cin, size, size), dtype=dtype, device="meta", memory_format=last)
        weight = torch.empty((self.cout, self.cin, self.kernel, self.kernel), dtype=dtype, device="meta")
        layer = layers.Layer((self.stride,) * 2, (self.kernel // 2,) * 2, "silu")
        vectors = torch.empty(4, self.cout, dtype=torch.float32, device="meta")
        for mode in modes:
            bn = BatchNorm(*vectors.unbind(), 1e-3, mode == "training")  # type: ignore[call-arg]
            if mode == "inference":
                layers.inference(x, weight, bn, layer)
                continue
            y, z, stats = layers.training_forward(x, weight, bn, layer, _running(bn))
            layers.training_backward(y, x, z, stats, weight, bn.training, layer, self.kernel == 1, True)


def _running(bn: BatchNorm | None) -> Running | None:
    if bn is None or not bn.training:
        return None
    return Running(bn.mean, bn.var, torch.empty((), dtype=torch.int64, device="meta"), 0.01)


def problem(case: Case, capability: int) -> tuple[Report | None, str]:
    """What became of a case, and what is wrong with it: "" if it neither spills nor has a stack."""
    try:
        report = compile_launch(case.launch, capability)
    except Exception as error:  # A compiler fails in many ways; each is a finding, not the end.
        return None, f"{case.launch.name}, {case.where}: does not compile: {error!r}"[:500]
    if report.spills == 0:
        return report, ""
    return report, f"{case.launch.name}, {case.where}: {report.spills} bytes of stack, {case.launch.meta}"
