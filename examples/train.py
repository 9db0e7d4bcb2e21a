#!/usr/bin/env python3
"""Train an EfficientNet with fused blocks: one CPU, one GPU, or many under torchrun.

    python examples/train.py --size 64 --batch-size 32 --lr 2e-3 --epochs 6 --output runs/digits
    torchrun --nproc-per-node 8 examples/train.py --data /data/imagenet --model b0 --amp bf16 --output runs/b0
    python examples/train.py ... --output runs/b0 --resume        # goes on where the last checkpoint was

``--data`` is ``digits`` (scikit-learn's 1797 handwritten digits) or a folder with ``train/`` and ``val/``, each with a
folder of images per class. Every step is written to ``log.csv`` and, where TensorBoard is installed, to ``tensorboard/``. A run
that was killed and resumed writes the curve of one that was not, because batches, augmentation and random states depend on
(seed, epoch, step) alone. Ctrl-C ends a run after the current step, with a checkpoint. On many nodes ``--output`` must be a
folder that all of them see.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

# Beside this file: Python puts a script's folder on its path.
from training_averages import Momentum, averaged_model
from training_data import Reproducible, datasets
from training_interrupt import Interrupt
from training_log import Log, Progress, claim

import effnet_fast


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="digits", help="digits, or a folder with train/ and val/ (default: digits)"
    )
    parser.add_argument("--model", default="b0", choices=effnet_fast.list_models())
    parser.add_argument("--stock", action="store_true", help="PyTorch's own kernels, for comparison")
    parser.add_argument("--size", type=int, default=224, help="pixels of an image's side")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step and process")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument(
        "--ema", type=float, default=0.999, help="decay of the averaged weights; 0 switches it off"
    )
    parser.add_argument("--amp", default="none", choices=["none", "bf16", "fp16"])
    parser.add_argument(
        "--sync-bn", action="store_true", help="BatchNorm statistics of all processes' images (GPUs only)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder of logs and checkpoint.pt")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument(
        "--resume", action="store_true", help="go on from --output's checkpoint if there is one"
    )
    parser.add_argument(
        "--max-steps", type=int, default=0, help="stop after so many steps, checkpoint written"
    )
    parser.add_argument("--no-tensorboard", action="store_true", help="log.csv only")
    return parser.parse_args(argv)


class Trainer:
    """Everything a run consists of; :meth:`state` and :meth:`restore` are its checkpoint."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        torch.manual_seed(args.seed)
        train, self.val, classes = datasets(args.data, args.size)
        self.train = Reproducible(train, args.seed)
        model = effnet_fast.create(args.model, num_classes=classes)
        if args.stock:
            effnet_fast.unpatch(model)
        if args.sync_bn:
            if self.device.type != "cuda":
                raise SystemExit(
                    "train.py: --sync-bn needs GPUs: PyTorch's SyncBatchNorm, outside the blocks, does"
                )
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.ema = averaged_model(model, args.ema) if args.ema else None
        decayed = [p for p in model.parameters() if p.ndim > 1]
        kept = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": args.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")
        self.parallel: nn.Module = self.model
        if self.world > 1:
            self.parallel = DistributedDataParallel(
                self.model, [local] if self.device.type == "cuda" else None
            )
        self.loss = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
        self.steps_per_epoch = len(self.train) // (args.batch_size * self.world)
        if self.steps_per_epoch == 0:
            raise SystemExit(
                f"train.py: {len(self.train)} images are fewer than one step's {args.batch_size * self.world}"
            )
        self.momentum = Momentum(model, args.epochs * self.steps_per_epoch)
        self.step, self.interrupt, self.stopped = 0, Interrupt(), False
        # Processes must not drop out the same samples.
        torch.manual_seed(args.seed * 1000 + self.rank)

    def autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.args.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.args.amp != "none")

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to zero."""
        total = self.args.epochs * self.steps_per_epoch
        warmup = min(self.args.warmup, total // 2)
        if self.step < warmup:
            return self.args.lr * (self.step + 1) / warmup
        return self.args.lr * 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(1, total - warmup)))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's batches of the current epoch, from the current step on."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        self.train.epoch = epoch
        generator = torch.Generator().manual_seed(self.args.seed + epoch)
        order = torch.randperm(len(self.train), generator=generator)
        order = order[: self.steps_per_epoch * self.args.batch_size * self.world]
        mine = order.view(self.steps_per_epoch, self.world, -1)[done:, self.rank]
        loader = DataLoader(
            self.train,
            batch_sampler=mine.tolist(),
            num_workers=self.args.workers,
            pin_memory=self.device.type == "cuda",
            # Otherwise the loader draws its workers' seed from the global generator, once more after a resume.
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        for images, labels in loader:
            images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
            yield images, labels.to(self.device, non_blocking=True)

    def train_step(self, images: Tensor, labels: Tensor) -> float:
        self.model.train()
        self.momentum.set(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.parallel(images), labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        # A signal may reach one process before the others: they stop at the same step.
        shown = torch.stack([loss.detach().float(), torch.tensor(float(self.interrupt.came)).to(self.device)])
        if self.world > 1:
            dist.all_reduce(shown)
        loss_sum, interrupts = shown.tolist()
        self.stopped = interrupts > 0
        return loss_sum / self.world

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Top-1 on the validation set, of the averaged weights where there are any; processes share the work."""
        model = (self.ema or self.model).eval()
        mine = Subset(self.val, range(self.rank, len(self.val), self.world))  # type: ignore[arg-type]
        count = torch.zeros(2, device=self.device, dtype=torch.float64)
        # A generator of its own again: an evaluation more or less must not change what dropout draws next.
        own = {"num_workers": self.args.workers, "generator": torch.Generator()}
        for images, labels in DataLoader(mine, self.args.batch_size, **own):
            with self.autocast():
                guess = model(images.to(self.device, memory_format=torch.channels_last)).argmax(1)
            count += torch.tensor([(guess.cpu() == labels).sum().item(), len(labels)], device=self.device)
        if self.world > 1:
            dist.all_reduce(count)
        return (count[0] / count[1]).item()

    def state(self) -> dict[str, Any]:
        random = [torch.get_rng_state()]
        if self.device.type == "cuda":
            random.append(torch.cuda.get_rng_state())
        if self.world > 1:
            everyone: list[Any] = [None] * self.world
            dist.all_gather_object(everyone, random)
        else:
            everyone = [random]
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        if self.ema is not None:
            parts["ema"] = self.ema
        return {
            "step": self.step,
            "random": everyone,
            **{name: part.state_dict() for name, part in parts.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        if len(state["random"]) != self.world:
            raise SystemExit(
                f"train.py: the checkpoint is of {len(state['random'])} processes, not {self.world}"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        random = state["random"][self.rank]
        torch.set_rng_state(random[0])
        if len(random) > 1:
            torch.cuda.set_rng_state(random[1])


def save(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a run killed while writing keeps the previous checkpoint."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def resume(trainer: Trainer, checkpoint: Path) -> None:
    """Every process reads the same file, or all of them stop."""
    if checkpoint.exists():
        try:
            trainer.restore(torch.load(checkpoint, map_location="cpu", weights_only=True))
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SystemExit(
                f"train.py: {checkpoint} is not of a run with these options ({reason})"
            ) from None
    if trainer.world > 1:
        steps: list[Any] = [None] * trainer.world
        dist.all_gather_object(steps, trainer.step)
        if len(set(steps)) > 1:
            raise SystemExit(f"train.py: processes found different checkpoints in --output (steps {steps})")


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    claim(args.output, args.resume)
    trainer = Trainer(args)
    checkpoint = args.output / "checkpoint.pt"
    if args.resume:
        resume(trainer, checkpoint)
    log = progress = None
    total = args.epochs * trainer.steps_per_epoch
    if trainer.rank == 0:
        log = Log(args.output, trainer.step, not args.no_tensorboard)
        progress = Progress(total)
    last, stopped = min(total, args.max_steps or total), False
    while trainer.step < last:
        for images, labels in trainer.batches():
            start = time.perf_counter()
            rate, epoch = trainer.learning_rate(), trainer.step // trainer.steps_per_epoch
            loss = trainer.train_step(images, labels)
            speed = len(images) * trainer.world / (time.perf_counter() - start)
            ended = trainer.step % trainer.steps_per_epoch == 0 or trainer.step == last
            stopped = trainer.stopped and trainer.step < last
            last = trainer.step if stopped else last
            accuracy = trainer.accuracy() if ended and not stopped else None
            if log and progress:
                values = {"accuracy": accuracy, "learning_rate": rate, "images_per_second": speed}
                log.write(trainer.step, epoch, loss=loss, **values)
                progress.update(trainer.step, f"loss {loss:.4f}  {speed:.1f} images/s")
                if accuracy is not None:
                    progress.line(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy:.4f}")
            if trainer.step % args.checkpoint_every == 0 or trainer.step == last:
                state = trainer.state()
                if trainer.rank == 0:
                    save(state, checkpoint)
            if trainer.step >= last:
                break
    if log:
        log.close()
    if trainer.world > 1:
        dist.destroy_process_group()
    if stopped:
        print(f"train.py: stopped at step {last}, checkpoint written; --resume goes on", file=sys.stderr)
        # As a shell counts a process that a signal ended.
        sys.exit(128 + trainer.interrupt.kind)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        # Before the first step: there is nothing to keep.
        print("train.py: interrupted", file=sys.stderr)
        sys.exit(130)
