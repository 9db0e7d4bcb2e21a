"""What train.py tells: log.csv, TensorBoard where it is installed, a progress bar on a terminal."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any, TextIO

FIELDS = {
    "loss": ".9g",
    "accuracy": ".5f",
    "learning_rate": ".6g",
    "images_per_second": ".1f",
}


def claim(folder: Path, resume: bool) -> None:
    """Makes the folder of a run; one that holds a run already is for going on only, never overwritten."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"train.py: --output {folder} cannot be made: {error.strerror}") from None
    if not resume and any((folder / name).exists() for name in ("checkpoint.pt", "log.csv")):
        raise SystemExit(
            f"train.py: {folder} holds a run: --resume goes on with it, or name another --output"
        )


class Log:
    """One row a step, cut back on resume to the steps that the checkpoint holds.

    Args:
        folder: of log.csv and tensorboard/.
        resumed_at: the checkpoint's step; 0 for a new run.
        tensorboard: write TensorBoard's files too, if it is installed.
    """

    def __init__(self, folder: Path, resumed_at: int, tensorboard: bool = True) -> None:
        path = folder / "log.csv"
        rows = []
        if resumed_at and path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resumed_at]
        self.file = path.open("w", newline="")
        self.writer = csv.DictWriter(self.file, ("step", "epoch", *FIELDS))
        self.writer.writeheader()
        self.writer.writerows(rows)
        self.board = _tensorboard(folder / "tensorboard", resumed_at + 1) if tensorboard else None

    def write(self, step: int, epoch: int, **values: float | None) -> None:
        """``values``: some of :data:`FIELDS`; ``None`` leaves a cell empty."""
        cells = {n: "" if v is None else format(v, FIELDS[n]) for n, v in values.items()}
        self.writer.writerow({"step": step, "epoch": epoch, **cells})
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                if value is not None:
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Steps that a killed run wrote after its checkpoint are written again: hide the first ones.
    return SummaryWriter(str(folder), purge_step=first_step)


class Progress:
    """A bar on one line of a terminal; nothing where the output is a file or a pipe."""

    WIDTH = 30

    def __init__(self, total: int, stream: TextIO = sys.stdout) -> None:
        self.total, self.stream = total, stream
        self.shown = stream.isatty()

    def update(self, step: int, text: str) -> None:
        if self.shown:
            done = self.WIDTH * step // self.total
            bar = "#" * done + "." * (self.WIDTH - done)
            self.stream.write(f"\r[{bar}] {step}/{self.total}  {text}\033[K")
            self.stream.flush()

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.stream.write(f"\r{text}\033[K\n" if self.shown else f"{text}\n")
        self.stream.flush()
