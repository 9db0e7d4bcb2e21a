"""Image files of every kind into the pixels that torchvision's presets would give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from effnet_fast import EffnetFastError
from effnet_fast.data import images, samples
from effnet_fast.data.images import PRESETS, ImageError, Preset, normalize, preset_for, read_image

Image = pytest.importorskip("PIL.Image")

SMALL = Preset(32, 28)


def picture(width: int = 50, height: int = 40, mode: str = "RGB"):
    """Smooth, with different colors in every corner, so that flips and swapped channels show."""
    x = torch.linspace(0, 255, width).expand(height, width)
    y = torch.linspace(0, 255, height).unsqueeze(1).expand(height, width)
    pixels = torch.stack([x, y, 255 - x], dim=2).to(torch.uint8)
    return Image.frombytes("RGB", (width, height), pixels.numpy().tobytes()).convert(mode)


def save(path: Path, image, **options) -> Path:
    image.save(path, **options)
    return path


def assert_close(actual: torch.Tensor, expected: torch.Tensor, levels: int) -> None:
    assert actual.dtype == torch.uint8 and actual.shape == expected.shape
    assert (actual.int() - expected.int()).abs().max().item() <= levels


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    for member in getattr(models, f"EfficientNet_{name.upper()}_Weights"):
        own = member.transforms()
        preset = preset_for(name, member)
        assert (preset.resize, preset.crop) == (own.resize_size[0], own.crop_size[0])
        assert (preset.interpolation, preset.mean, preset.std) == (
            own.interpolation.value,
            tuple(own.mean),
            tuple(own.std),
        )
        if member.name == "IMAGENET1K_V1":
            assert preset == PRESETS[name]


@pytest.mark.parametrize("name", ["b0", "b1", "b2", "b3"])
@pytest.mark.parametrize("size", [(451, 300), (300, 451), (500, 500), (100, 60), (333, 1001)])
def test_pixels_are_torchvisions(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("numpy")
    image = picture(*size)
    path = save(tmp_path / "photo.png", image)
    member = getattr(models, f"EfficientNet_{name.upper()}_Weights").IMAGENET1K_V1
    preset = preset_for(name, member)
    ours = normalize(read_image(path, preset)[None], preset)
    theirs = member.transforms()(image)[None]
    assert ours.shape == theirs.shape
    # One of 256 levels, in units of the smallest standard deviation: only the rounding of the crop differs.
    assert (ours - theirs).abs().max().item() <= 1.01 / 255 / min(preset.std)


@pytest.mark.parametrize("name", ["cat", "palace"])
def test_photos_are_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    try:
        path = samples.photo_paths()[name]
    except EffnetFastError as error:
        pytest.skip(str(error))
    preset = PRESETS["b0"]
    theirs = models.EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()(Image.open(path).convert("RGB"))[None]
    ours = normalize(read_image(path, preset)[None], preset)
    assert (ours - theirs).abs().max().item() <= 1.01 / 255 / min(preset.std)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    upright = picture(64, 48)
    # What the camera stored so that a viewer which obeys the tag shows the upright picture.
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.png", stored, exif=exif)
    assert_close(
        read_image(path, SMALL), read_image(save(tmp_path / "upright.png", upright), SMALL), levels=0
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1", "I;16", "I"])
def test_modes(mode: str, tmp_path: Path) -> None:
    gray = picture().convert("L")
    if mode in ("I;16", "I"):
        wide = gray.convert("I").point(lambda value: value * 257)
        stored, expected, levels = wide if mode == "I" else wide.convert("I;16"), gray.convert("RGB"), 0
    elif mode == "1":
        stored = gray.convert("1")
        expected, levels = stored.convert("RGB"), 0
    else:
        stored = picture(mode=mode) if mode != "LA" else gray.convert("LA")
        expected, levels = stored.convert("RGB"), 0
    path = save(tmp_path / "photo.tiff", stored)
    reference = read_image(save(tmp_path / "plain.png", expected), SMALL)
    assert_close(read_image(path, SMALL), reference, levels)
    assert reference.int().max() - reference.int().min() > 100


def test_16_bit_png_keeps_its_gray_levels(tmp_path: Path) -> None:
    # Pillow's own conversion clips everything above 255 to white.
    gray = picture().convert("L")
    path = save(tmp_path / "deep.png", gray.convert("I").point(lambda value: value * 257).convert("I;16"))
    plain = read_image(save(tmp_path / "plain.png", gray), SMALL)
    assert_close(read_image(path, SMALL), plain, levels=0)


@pytest.mark.parametrize("kind", ["RGBA", "palette"])
def test_transparency_is_laid_over_white(kind: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    if kind == "palette":
        image = Image.new("P", (40, 40), 0)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.info["transparency"] = 0
    path = save(tmp_path / "clear.png", image)
    assert read_image(path, SMALL).min() == 255


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (40, 40), (255, 0, 0)), Image.new("RGB", (40, 40), (0, 0, 255))
    path = tmp_path / "moving.gif"
    red.save(path, save_all=True, append_images=[blue, blue])
    pixels = read_image(path, SMALL)
    assert (pixels[0] == 255).all() and (pixels[1:] == 0).all()


def test_extreme_sizes(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "dot.png", Image.new("RGB", (1, 1), "red")), SMALL).shape == (3, 28, 28)
    # Scaled as a whole, this line would take a gigabyte.
    line = save(tmp_path / "line.png", Image.new("L", (200_000, 1), 7))
    assert (read_image(line, PRESETS["b7"]) == 7).all()


def test_normalize_range() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert torch.equal(normalize(pixels, images.LITE0_PRESET), pixels.float() / 127.5 - 1)


def bad_files(tmp_path: Path) -> dict[str, Path]:
    whole = save(tmp_path / "whole.jpg", picture(400, 300)).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    png = save(tmp_path / "whole.png", picture(400, 300)).read_bytes()
    (tmp_path / "truncated.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    save(tmp_path / "float.tiff", Image.new("F", (40, 40), 0.5))
    save(tmp_path / "negative.tiff", Image.new("I", (40, 40), -5))
    return {
        "does not exist": tmp_path / "absent.png",
        "is a folder": tmp_path,
        "truncated": tmp_path / "truncated.jpg",
        "cannot be read": tmp_path / "truncated.png",
        "is not an image": tmp_path / "text.png",
        "not an image": tmp_path / "empty.jpg",
        "floating-point": tmp_path / "float.tiff",
        "-5 to -5": tmp_path / "negative.tiff",
    }


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    for words, path in bad_files(tmp_path).items():
        with pytest.raises(ImageError, match=words) as caught:
            read_image(path, SMALL)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "large.png", picture(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="large.png cannot be read: .*10000 pixels"):
        read_image(path, SMALL)


@pytest.mark.parametrize("colors", [2, 4, 16, 256])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_palette_with_transparency_is_the_same_pixels_as_rgba(
    colors: int, rotated: bool, tmp_path: Path
) -> None:
    """The transparency of a palette comes as bytes, one a color, for all of them or for the first."""
    generator = torch.Generator().manual_seed(colors)

    def random(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator, dtype=torch.int64).to(torch.uint8)

    index, palette, alphas = random(colors, 40, 50), random(256, colors, 3), random(256, colors // 2)
    alpha = torch.cat([alphas, torch.full((colors - len(alphas),), 255, dtype=torch.uint8)])
    rgba = torch.cat([palette[index.long()], alpha[index.long()][..., None]], dim=2)
    with_palette = Image.frombytes("P", (50, 40), bytes(index.flatten().tolist()))
    with_palette.putpalette(palette.flatten().tolist())
    plain = Image.frombytes("RGBA", (50, 40), bytes(rgba.flatten().tolist()))
    exif = Image.Exif()
    exif[0x0112] = 6 if rotated else 1
    transparency = bytes(alphas.tolist())
    path = save(tmp_path / "palette.png", with_palette, transparency=transparency, exif=exif)
    assert isinstance(Image.open(path).info["transparency"], bytes)
    got, expected = (read_image(p, SMALL) for p in (path, save(tmp_path / "rgba.png", plain, exif=exif)))
    assert_close(got, expected, levels=0)
    assert expected.unique().numel() > 4


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_first_frame_of_every_kind_of_animation(suffix: str, tmp_path: Path) -> None:
    first, second = picture(), picture().transpose(Image.Transpose.ROTATE_180)
    path = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=[second, second], **options)
    still = save(tmp_path / f"still.{suffix}", first, **options)
    assert_close(read_image(path, SMALL), read_image(still, SMALL), levels=0)
    assert not torch.equal(read_image(path, SMALL), read_image(save(tmp_path / "2.png", second), SMALL))


def test_a_photo_of_108_megapixels_is_read_without_copies_of_it(tmp_path: Path) -> None:
    """12000 x 9000 pixels are 0.43 GB as Pillow keeps them; three of them at a time end small machines."""
    path = save(tmp_path / "large.png", Image.new("RGB", (12000, 9000), (9, 90, 200)))
    code = (
        "import resource, sys\n"
        "from effnet_fast.data.images import Preset, read_image\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = used()\n"
        "pixels = read_image(sys.argv[1], Preset(32, 28))\n"
        "print(pixels.float().mean((1, 2)).tolist(), used() - before < 650)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[9.0, 90.0, 200.0] True\n"
