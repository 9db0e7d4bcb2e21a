"""The roofline of B0 to B7 against numbers counted by a script that shares no code with this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from effnet_fast.bench import blocks, results, roofline
from effnet_fast.models import list_models

ROOT = Path(__file__).resolve().parent.parent
DESIGNS = ("eager", "compiled", "fused")

#: Copies, matrix products, stencils, exponentials and reciprocals; bf16, batch 256.
H200 = roofline.Device(4.3e12, 790e12, 60e12, 4.0e12)

#: (model, mode) -> MB per image of the three designs, then their ceilings in images per second.
COUNTED = {
    ("b0", "infer"): (94.091, 59.120, 27.505, 45647.91, 72189.28, 155033.15),
    ("b1", "infer"): (155.301, 96.740, 44.965, 27614.29, 43986.58, 94502.12),
    ("b2", "infer"): (197.675, 122.953, 57.060, 21668.02, 34536.84, 74134.60),
    ("b3", "infer"): (339.850, 211.732, 98.403, 12594.11, 20033.09, 42961.94),
    ("b4", "infer"): (712.472, 441.521, 204.425, 5990.66, 9560.92, 20518.03),
    ("b5", "infer"): (1437.109, 887.187, 410.506, 2954.18, 4716.35, 10039.16),
    ("b6", "infer"): (2436.858, 1503.746, 695.842, 1737.23, 2769.81, 5867.47),
    ("b7", "infer"): (4248.328, 2614.742, 1209.068, 991.38, 1579.60, 3324.51),
    ("b0", "train"): (338.983, 203.494, 128.943, 12672.63, 21058.91, 33189.80),
    ("b1", "train"): (561.410, 333.578, 211.723, 7642.21, 12817.69, 20182.00),
    ("b2", "train"): (714.995, 424.129, 269.084, 5994.50, 10063.60, 15852.69),
    ("b3", "train"): (1229.390, 730.875, 464.222, 3484.21, 5834.33, 9184.14),
    ("b4", "train"): (2582.036, 1524.150, 964.574, 1655.13, 2786.59, 4404.91),
    ("b5", "train"): (5216.197, 3065.472, 1941.554, 815.70, 1375.09, 2171.18),
    ("b6", "train"): (8847.999, 5197.326, 3292.305, 479.75, 807.83, 1274.94),
    ("b7", "train"): (15439.759, 9039.348, 5723.335, 273.77, 461.12, 727.91),
}


@pytest.mark.parametrize(("model", "mode"), COUNTED)
def test_bytes_and_ceilings(model: str, mode: str) -> None:
    work = [roofline.kernels(blocks.network(model), design, mode) for design in DESIGNS]
    megabytes = [roofline.bytes_per_image(launches, 256) / 1e6 for launches in work]
    ceilings = [1 / roofline.seconds_per_image(launches, H200, 256) for launches in work]
    # Half a unit of the last digit above, and rounding in fp64.
    assert megabytes == pytest.approx(COUNTED[model, mode][:3], abs=0.000501, rel=0)
    assert ceilings == pytest.approx(COUNTED[model, mode][3:], abs=0.00501, rel=0)


def _table(*arguments: str) -> list[list[str]]:
    command = [sys.executable, ROOT / "benchmarks" / "roofline.py", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split() for line in run.stdout.splitlines()]


def test_the_table_at_rates_given_and_at_those_of_a_file(tmp_path: Path) -> None:
    rates = ("--bandwidth", "4.3e12", "--dense", "790e12", "--stencil", "60e12", "--special", "4e12")
    rows = _table(*rates, "--batch", "256")[-8:]
    assert [row[0] for row in rows] == list_models()
    # MB, milliseconds, images a second of the fused design.
    assert rows[0][-3:] == ["27.5", "0.00645", "155,033.2"]

    facts = {"device_name": "Some GPU", "copy_gb_per_s": 4300.0, "matmul_tflops": {"bf16": 790.0}}
    results.write(tmp_path / "e2e.json", {"environment": facts, "rows": []})
    of_file = _table(str(tmp_path / "e2e.json"), "--batch", "256")
    assert of_file[0][:2] == ["Some", "GPU:"] and of_file[-8][-3] == "27.5"
