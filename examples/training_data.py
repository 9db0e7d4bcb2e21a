"""Data of train.py: scikit-learn's digits or a folder of images, reproducible whichever process loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset


class Reproducible(Dataset[tuple[Tensor, int]]):
    """Gives every (epoch, index) its own random state, whichever process loads it and whatever ran before."""

    def __init__(self, data: Dataset[Any], seed: int) -> None:
        self.data, self.seed, self.epoch = data, seed, 0

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone: torch.manual_seed would reseed the GPU, where dropout draws.
            torch.default_generator.manual_seed(hash((self.seed, self.epoch, index)) % 2**63)
            return self.data[index]


def datasets(data: str, size: int) -> tuple[Dataset[Any], Dataset[Any], int]:
    """Training set, validation set, number of classes.

    Args:
        data: ``digits``, or a folder with ``train/`` and ``val/``, each with a folder of images per class.
        size: pixels of an image's side.
    """
    if data == "digits":
        return _digits(size)
    parts = [Path(data) / "train", Path(data) / "val"]
    if missing := next((part for part in parts if not part.is_dir()), None):
        raise SystemExit(
            f"train.py: --data expects digits, or a folder with train/ and val/; {missing} is no folder"
        )
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    normalize = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *normalize]
    centre = [transforms.Resize(round(size * 1.15)), transforms.CenterCrop(size), *normalize]
    try:
        train = ImageFolder(str(parts[0]), transforms.Compose(crop))
        val = ImageFolder(str(parts[1]), transforms.Compose(centre))
    # No folder of a class, or one without images.
    except FileNotFoundError as error:
        raise SystemExit(f"train.py: --data {data}: {str(error).splitlines()[0]}") from None
    if train.classes != val.classes:
        only = sorted(set(train.classes) ^ set(val.classes))[0]
        raise SystemExit(f"train.py: --data {data}: train/ and val/ differ in the class {only!r}")
    return train, val, len(train.classes)


def _digits(size: int) -> tuple[Dataset[Any], Dataset[Any], int]:
    """1797 handwritten digits of 8x8 pixels, upsampled; every sixth is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=size, mode="bilinear").expand(-1, 3, -1, -1)
    data = [(image, int(label)) for image, label in zip(images, digits.target, strict=True)]
    rest = [i for i in range(len(data)) if i % 6]
    return Subset(data, rest), Subset(data, range(0, len(data), 6)), 10  # type: ignore[arg-type]
