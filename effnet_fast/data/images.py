"""From an image file to a network's input, as torchvision's presets do it, with Pillow and torch alone."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from ..errors import EffnetFastError
from ..models.config import canonical_name

if TYPE_CHECKING:
    from PIL import Image

PILLOW_MISSING = "reading images needs Pillow: pip install pillow"


#: Pillow's, by the names that presets have.
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


class ImageError(EffnetFastError):
    """A file cannot be read as an image."""


class Preset(NamedTuple):
    """Scale the shorter side to ``resize`` pixels, cut ``crop`` x ``crop`` from the center, normalize.

    ``mean`` and ``std`` belong to values of 0 to 1.
    """

    resize: int
    crop: int
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


#: What torchvision's ``EfficientNet_B*_Weights.IMAGENET1K_V1`` were evaluated with. B2's 288 is not a slip:
#: its weights do better there than at the 260 pixels of the paper.
PRESETS = {
    "b0": Preset(256, 224),
    "b1": Preset(256, 240),
    "b2": Preset(288, 288),
    "b3": Preset(320, 300),
    "b4": Preset(384, 380),
    "b5": Preset(456, 456),
    "b6": Preset(528, 528),
    "b7": Preset(600, 600),
}

#: efficientnet_lite_pytorch's Lite0: values from -1 to 1.
LITE0_PRESET = Preset(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def preset_for(name: str, weights: Any = None) -> Preset:
    """The preset of a model, or of its torchvision weights enum member, which knows better (B1's second weights).

    Raises:
        UnknownModelError: a name that is not in ``list_models()``.
    """
    preset = PRESETS[canonical_name(name)]
    transforms = getattr(weights, "transforms", None)
    if transforms is None:
        return preset
    own = transforms()
    return Preset(
        own.resize_size[0], own.crop_size[0], own.interpolation.value, tuple(own.mean), tuple(own.std)
    )


def read_image(path: str | os.PathLike[str], preset: Preset) -> Tensor:
    """An image file, upright, scaled and cropped: uint8 [3, crop, crop], RGB.

    Photos are turned as their EXIF orientation says, 16-bit images are reduced to 8 bits, transparency is laid
    over white, of an animation the first frame is taken.

    Raises:
        ImageError: no such file, not an image, truncated, or of a kind that has no plain colors.
        EffnetFastError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise EffnetFastError(PILLOW_MISSING) from None
    try:
        with warnings.catch_warnings():
            # Large photos are welcome; what Pillow takes for an attack is still refused, as an error.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return _to_tensor(_resize_and_crop(_to_rgb(image, path), preset))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"image: {path} is not an image that Pillow can read") from None
    except FileNotFoundError:
        raise ImageError(f"image: {path} does not exist") from None
    except IsADirectoryError:
        raise ImageError(f"image: {path} is a folder, expected an image file") from None
    # Damaged files make the decoders raise almost anything (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"image: {path} cannot be read: {reason}") from None


def normalize(images: Tensor, preset: Preset) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 of the same shape, with the preset's mean and standard deviation."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
        for v in (preset.mean, preset.std)
    )
    return (images.float() / 255 - mean) / std


def _to_rgb(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    from PIL import Image, ImageOps

    # The first frame: some readers of animations (GIF, WebP, APNG) start elsewhere after a look at the others.
    image.seek(0)
    image.load()
    # In place: a copy of the largest photos that Pillow opens is half a gigabyte.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ImageError(f"image: {path} holds floating-point values, expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        wide = image.convert("I")
        low, high = cast("tuple[int, int]", wide.getextrema())
        if low < 0 or high > 65535:
            raise ImageError(
                f"image: {path} holds values from {low} to {high}, expected 8 or 16 bits a channel"
            )
        # Pillow's own conversion would clip at 255. convert("L") truncates, hence the half.
        image = wide.convert("F").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        # Given in 16 bits, it would no longer name a gray level.
        image.info.pop("transparency", None)
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        background = Image.new("RGBA", colors.size, "white")
        image = Image.alpha_composite(background, colors)
    return image if image.mode == "RGB" else image.convert("RGB")


def _resize_and_crop(image: Image.Image, preset: Preset) -> Image.Image:
    """torchvision's ``resize`` and ``center_crop`` with its rounding, computing only the pixels that stay."""
    from PIL import Image

    width, height = image.size
    if width <= height:
        new_width, new_height = preset.resize, int(preset.resize * height / width)
    else:
        new_width, new_height = int(preset.resize * width / height), preset.resize
    left, top = round((new_width - preset.crop) / 2), round((new_height - preset.crop) / 2)
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min((left + preset.crop) * x, width), min((top + preset.crop) * y, height))
    resampling = Image.Resampling[preset.interpolation.upper()]
    return image.resize((preset.crop, preset.crop), resampling, box=box)


def _to_tensor(image: Image.Image) -> Tensor:
    width, height = image.size
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1).contiguous()
