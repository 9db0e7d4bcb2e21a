"""Loss curves of B0 on scikit-learn's digits, stock torchvision and fused from the same seed: data and figure.

    python benchmarks/training_curves.py run fp32    # or bf16, fp64; goes on where an interrupted run stopped
    python benchmarks/training_curves.py figure      # docs/figures/training_curves.svg and the table, from the data

1797 digits of 8x8 pixels, upsampled; every sixth is held out. SGD with momentum, cosine schedule, dropout and stochastic depth
as torchvision sets them. Both runs of a seed start from the same weights and draw the same batches and random numbers: their
losses differ by rounding alone, which training from scratch amplifies, whoever rounds. How much it does so without us show two
more stock runs: one with its images moved by a rounding of fp32, one in NCHW, where PyTorch sums in another order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import effnet_fast
from effnet_fast.bench import results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
KINDS = ("stock", "fused")
#: Stock too, in fp32 from the first seed alone.
CONTROLS = ("perturbed", "nchw")
SEEDS = {"fp64": (0,), "fp32": (0, 1, 2), "bf16": (0, 1, 2, 3, 4)}


class Job(NamedTuple):
    """One run. ``dtype``: of weights and images, except bf16: fp32 under bf16 autocast."""

    kind: str
    dtype: str
    seed: int
    steps: int = 200
    batch: int = 32
    size: int = 64
    backend: str = "auto"
    peak: float = 0.002
    warmup: int = 20


def digits(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels; images [N, 3, size, size] in [-1, 1], fp64."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float64)[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=size, mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(data.target)
    held_out = torch.arange(len(labels)) % 6 == 0
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def train(job: Job, model: nn.Module, tell: Callable[[int, float], None] = lambda step, loss: None) -> dict:
    """The job's losses, step by step, and the accuracy after the last."""
    wide = torch.float64 if job.dtype == "fp64" else torch.float32
    images, labels, held_out, answers = digits(job.size)
    if job.kind == "perturbed":
        images = images * (1 + 2.0**-23)
    images, held_out = images.to(wide), held_out.to(wide)
    layout = torch.contiguous_format if job.kind == "nchw" else torch.channels_last
    model = model.to(wide, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=job.peak, momentum=0.9, weight_decay=1e-4)
    order = torch.Generator().manual_seed(job.seed)
    torch.manual_seed(job.seed)
    losses = []
    start = time.perf_counter()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.dtype == "bf16")
    with effnet_fast.use_backend(job.backend) if job.kind == "fused" else contextlib.nullcontext():
        for step in range(job.steps):
            rate = min((step + 1) / job.warmup, 0.5 + 0.5 * math.cos(math.pi * step / job.steps))
            optimizer.param_groups[0]["lr"] = job.peak * rate
            mine = torch.randint(len(labels), (job.batch,), generator=order)
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = nn.functional.cross_entropy(model(images[mine]), labels[mine])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            tell(step, losses[-1])
        model.eval()
        with torch.inference_mode(), autocast:
            guesses = torch.cat([model(part).argmax(1) for part in held_out.split(job.batch)])
    accuracy = (guesses == answers).double().mean().item()
    return {"losses": losses, "accuracy": accuracy, "seconds": round(time.perf_counter() - start, 1)}


def network(job: Job) -> nn.Module:
    """torchvision's B0 with ten classes, from the job's seed; patched for a fused run."""
    import torchvision

    torch.manual_seed(job.seed)
    model = torchvision.models.efficientnet_b0(num_classes=10)
    return effnet_fast.patch(model, strict=True) if job.kind == "fused" else model


def jobs(dtype: str) -> list[Job]:
    if dtype == "fp64":
        # Only the reference backend computes in fp64, slowly, and so does PyTorch: few steps, small images.
        return [Job(kind, dtype, 0, 20, 16, 32, "reference", 0.0005) for kind in KINDS]
    wanted = [Job(kind, dtype, seed) for seed in SEEDS[dtype] for kind in KINDS]
    return wanted + [Job(kind, dtype, 0) for kind in CONTROLS if dtype == "fp32"]


def data_file(dtype: str) -> Path:
    return RESULTS / f"training_curves_{dtype}.json"


def run(dtype: str) -> None:
    path = data_file(dtype)
    data: dict[str, Any] = {"environment": results.facts("cpu"), "fields": Job._fields, "runs": []}
    if path.exists():
        data = json.loads(path.read_text())
    done = [Job(*entry["job"]) for entry in data["runs"]]

    def tell(step: int, loss: float) -> None:
        if step % 20 == 0:
            print(f"{job.kind} {job.dtype} seed {job.seed} step {step}: {loss:.4f}", flush=True)

    for job in jobs(dtype):
        if job not in done:
            data["runs"].append({"job": job, **train(job, network(job), tell)})
            results.write(path, data)


Runs = dict[tuple[str, str, int], dict[str, Any]]


def load() -> Runs:
    """(kind, dtype, seed) -> the run, of every data file."""
    entries = [entry for dtype in SEEDS for entry in json.loads(data_file(dtype).read_text())["runs"]]
    return {tuple(entry["job"][:3]): entry for entry in entries}


def table(runs: Runs) -> str:
    """Accuracy on the held-out digits after the last step, in Markdown."""
    columns = max(len(seeds) for seeds in SEEDS.values())
    lines = ["| precision | run | " + " | ".join(f"seed {seed}" for seed in range(columns)) + " | mean |"]
    lines.append("|---|---|" + "--:|" * (columns + 1))
    for dtype in ("fp32", "bf16"):
        for kind in KINDS:
            found = [runs[kind, dtype, seed]["accuracy"] for seed in SEEDS[dtype]]
            cells = [f"{100 * value:.1f} %" for value in found] + [""] * (columns - len(found))
            lines.append(
                f"| {dtype} | {kind} | {' | '.join(cells)} | {100 * sum(found) / len(found):.1f} % |"
            )
    return "\n".join(lines) + "\n"


def figure(runs: Runs, path: Path) -> None:
    """Losses in fp32 and bf16, and how far runs of one seed are apart, as one SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Readable on white and on black.
    grey = "#808080"
    parts = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")
    colors = {"stock": "#3b82c4", "fused": "#e8743b", "perturbed": grey, "nchw": grey}
    # The salt makes the file's identifiers the same every time.
    style = {**dict.fromkeys(parts, grey), "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "curves"}
    with pyplot.rc_context(style):
        canvas, axes = pyplot.subplots(1, 3, figsize=(11, 3.4))
        for axis, dtype in zip(axes, ("fp32", "bf16"), strict=False):
            for kind, dashes in zip(KINDS, ("-", "--"), strict=True):
                for seed in SEEDS[dtype]:
                    label = "_" if seed else kind
                    axis.plot(
                        _smooth(runs[kind, dtype, seed]["losses"]),
                        dashes,
                        color=colors[kind],
                        lw=1,
                        label=label,
                    )
            axis.set(
                title=f"{dtype}, {len(SEEDS[dtype])} seeds", xlabel="step", ylabel="loss, mean of 10 steps"
            )
        for (kind, dtype, seed), entry in runs.items():
            if kind != "stock" and dtype != "bf16":
                pairs = zip(entry["losses"], runs["stock", dtype, seed]["losses"], strict=True)
                apart = [max(abs(a - b) / b, 1e-17) for a, b in pairs][:20]
                dashes = {"perturbed": "--", "nchw": ":"}.get(kind, "-." if dtype == "fp64" else "-")
                label = "_" if seed else f"{kind}, {dtype}"
                axes[2].semilogy(
                    range(1, len(apart) + 1), apart, dashes, color=colors[kind], lw=1, label=label
                )
        axes[2].set(title="relative distance from stock", xlabel="step", xticks=range(2, 21, 2))
        for axis in axes:
            axis.legend(frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
        canvas.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, transparent=True, metadata={"Date": None})


def _smooth(losses: list[float], width: int = 10) -> list[float]:
    parts = [losses[max(0, i - width + 1) : i + 1] for i in range(len(losses))]
    return [sum(part) / len(part) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("dtype", choices=SEEDS)
    commands.add_parser("figure")
    args = parser.parse_args()
    if args.command == "run":
        run(args.dtype)
        return
    runs = load()
    figure(runs, ROOT / "docs/figures/training_curves.svg")
    print(table(runs), end="")


if __name__ == "__main__":
    main()
