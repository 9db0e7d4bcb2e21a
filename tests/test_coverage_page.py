"""docs/coverage.md says what is: a sample of its rows, made anew."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "coverage.md").read_text()

#: A few of each library, and every kind of answer.
SAMPLE = {
    "torchvision": (
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mnasnet0_5",
        "efficientnet_b0",
        "efficientnet_v2_s",
    ),
    "timm": (
        "efficientnet_b0",
        "mobilenetv3_small_075",
        "lcnet_050",
        "mixnet_s",
        "tf_efficientnetv2_b0",
        "ghostnet_050",
    ),
    "efficientnet_pytorch": ("efficientnet-b0",),
    "efficientnet_lite_pytorch": ("efficientnet-lite0",),
    "geffnet": ("mobilenetv3_large_100", "tf_efficientnet_es"),
    "segmentation_models_pytorch": ("Unet on efficientnet-b0", "DeepLabV3Plus on mobilenet_v2"),
    "transformers": ("EfficientNetForImageClassification", "MobileNetV2ForImageClassification"),
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_table", ROOT / "scripts" / "coverage_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_table"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("library", SAMPLE)
def test_rows_are_what_the_script_finds(library: str, script: ModuleType) -> None:
    listed = re.search(rf"^## {library} (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert listed is not None, f"the page has no section of {library}"
    try:
        here = version(library)
    except PackageNotFoundError:
        pytest.skip(f"{library} is not installed")
    if here != listed[1]:
        pytest.skip(f"the page is of {library} {listed[1]}, here is {here}")
    made = script.installed(library)
    if not made:
        pytest.skip(f"{library} cannot be imported here")
    for name in SAMPLE[library]:
        assert str(script.row(name, made[name])) in listed[2].splitlines(), name


def test_the_script_lists_every_library_of_the_page(script: ModuleType) -> None:
    assert re.findall(r"^## (\S+) ", PAGE, re.MULTILINE) == list(script.LIBRARIES) == list(SAMPLE)
