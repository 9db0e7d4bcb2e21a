"""Statistics, speed-ups, comparison, block shapes and the roofline of the benchmark package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from bench_rows import make_row

from effnet_fast.bench import blocks, results, roofline
from effnet_fast.bench.stats import Spread, geometric_mean, quantile, summarize, verdict
from effnet_fast.errors import EffnetFastError
from effnet_fast.models import list_models
from effnet_fast.models import summarize as summarize_model

# --- statistics ---


@pytest.mark.parametrize("count", [1, 2, 3, 10, 57])
def test_quantiles_are_numpys(count: int) -> None:
    values = torch.rand(count).tolist()
    for q in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert quantile(values, q) == pytest.approx(numpy.quantile(values, q))
    assert summarize(values) == pytest.approx(tuple(numpy.quantile(values, (0.5, 0.2, 0.8))))


@pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_quantile_refuses(values: list[float], q: float) -> None:
    with pytest.raises(EffnetFastError, match="quantile"):
        quantile(values, q)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (Spread(8.0, 7.9, 8.1), "better"),
        (Spread(12.0, 11.9, 12.1), "worse"),
        (Spread(10.1, 10.0, 10.2), "same"),
        # Medians far apart, but the ranges meet: no verdict.
        (Spread(8.0, 7.0, 9.6), "same"),
        (Spread(12.0, 10.4, 14.0), "same"),
    ],
)
def test_verdict_respects_the_spread(new: Spread, expected: str) -> None:
    assert verdict(Spread(10.0, 9.5, 10.5), new) == expected


def test_tiny_changes_are_no_verdict_even_without_spread() -> None:
    exact = Spread(10.0, 10.0, 10.0)
    assert verdict(exact, Spread(9.9, 9.9, 9.9)) == "same"
    assert verdict(exact, Spread(10.1, 10.1, 10.1)) == "same"
    assert verdict(exact, Spread(9.7, 9.7, 9.7)) == "better"
    assert verdict(exact, Spread(10.3, 10.3, 10.3)) == "worse"


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


# --- rows, speed-ups, comparison ---


def test_speedup_is_against_the_fastest_baseline() -> None:
    rows = [
        make_row("eager", 10.0),
        make_row("compile", 6.0),
        make_row("effnet-fast", 3.0),
        make_row("openvino", None),
    ]
    results.add_speedups(rows)
    assert [row["speedup"] for row in rows] == [pytest.approx(0.6), 1.0, pytest.approx(2.0), None]


def test_speedup_needs_a_baseline_of_the_same_job() -> None:
    rows = [make_row("eager", 10.0, batch=64), make_row("effnet-fast", 3.0)]
    results.add_speedups(rows)
    assert rows[1]["speedup"] is None


def test_a_row_has_the_promised_columns_and_pools_all_samples() -> None:
    row = make_row("eager", 4.0)
    assert (row["median_ms"], row["images_per_second"], row["samples"]) == (4.0, 500.0, 3)
    assert 3.8 < row["p20_ms"] < 4.0 < row["p80_ms"] < 4.2
    assert set(results.COLUMNS) <= set(row)
    failed = make_row("eager", None)
    assert failed["status"] == "out of memory" and failed["reason"] == "too large"
    assert set(results.COLUMNS) <= set(failed) and failed["median_ms"] is None


def test_compare_matches_jobs_and_skips_failures() -> None:
    old = [
        make_row("eager", 10.0),
        make_row("compile", 5.0),
        make_row("openvino", None),
        make_row("tensorrt", 1.0),
    ]
    new = [
        make_row("effnet-fast", 1.0),
        make_row("eager", 5.0),
        make_row("compile", 9.0),
        make_row("openvino", 2.0),
    ]
    changes = results.compare(old, new)
    assert [(c.key[-1], c.verdict) for c in changes] == [("eager", "better"), ("compile", "worse")]
    assert (changes[0].old_ms, changes[0].new_ms) == (10.0, 5.0)


@pytest.mark.parametrize("write", [results.write, results.write_csv])
def test_what_cannot_be_written_is_one_sentence(write: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EffnetFastError, match=r"^bench: cannot write .*: (Not a directory|File exists)$"):
        write(tmp_path / "file" / "out", [])


def test_json_and_csv_come_back(tmp_path: Path) -> None:
    data = {"environment": {"torch": "2"}, "rows": [make_row("eager", 1.0), make_row("compile", None)]}
    results.write(tmp_path / "deep" / "a.json", data)
    assert results.read(tmp_path / "deep" / "a.json") == json.loads(json.dumps(data))
    results.write_csv(tmp_path / "a.csv", data["rows"])
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].split(",") == list(results.COLUMNS) and len(lines) == 3


@pytest.mark.parametrize(
    "content", ["", "[]", '{"rows": []}', '{"environment": {}, "rows": [{"model": "b0"}]}']
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(EffnetFastError, match=re.escape(str(path))):
        results.read(path)


# --- shapes and the roofline ---


@pytest.mark.parametrize("name", list_models())
def test_blocks_are_the_models_blocks(name: str) -> None:
    network, summary = blocks.network(name), summarize_model(name)
    assert len(network.blocks) == sum(s.repeats for s in summary.stages if s.name.startswith("stage"))
    for number, stage in enumerate(summary.stages[1:-2], 1):
        first, last = (
            next(b for b in order if b.stage == number) for order in (network.blocks, network.blocks[::-1])
        )
        assert (first.in_channels, first.size, first.stride) == (
            stage.in_channels,
            stage.input_size,
            stage.stride,
        )
        assert (last.out_channels, last.out_size) == (stage.out_channels, stage.output_size)
    work = roofline.kernels(network, "fused", "infer")
    # Independent of the blocks' own arithmetic: multiply-adds and parameters as counted on the real model.
    assert sum(k.dense + k.stencil for k in work) + _gate_work(network) == summary.multiply_adds
    norms = 2 * (
        network.stem_channels + network.head_channels + sum(_norm_channels(b) for b in network.blocks)
    )
    assert sum(k.parameters for k in work) + norms == summary.parameters


def _gate_work(network: blocks.Network) -> int:
    return sum(2 * b.channels * b.squeeze for b in network.blocks)


def _norm_channels(block: blocks.Block) -> int:
    return block.channels * (2 if block.expands else 1) + block.out_channels


def test_names_tell_blocks_of_a_model_apart() -> None:
    names = {b.name for b in blocks.network("b4").blocks}
    assert {"b4-stage3-k5s2", "b4-stage3-k5s1-res", "b4-stage5-k5s1", "b4-stage5-k5s1-res"} <= names
    kinds = {tuple(b) for b in blocks.network("b4").blocks}
    assert len(kinds) == len(names)


def test_bytes_of_one_block_by_hand() -> None:
    block = blocks.Block("b0", 5, 112, 672, 112, 5, 1, 14, 28)
    alone = blocks.Network("b0", 8, 8, 4, (block,), 8, 8, 4)
    without = alone._replace(blocks=())
    work = roofline.kernels(alone)[1:5]
    assert [k.name for k in work] == ["expand", "depthwise", "squeeze_excite", "project"]
    x, e = 112 * 196, 672 * 196
    assert [k.elements for k in work] == [x + e, 2 * e, 2 * 672, e + 2 * x]
    assert work[1].stencil == 25 * e and work[0].dense == 112 * e
    both = [roofline.bytes_per_image(roofline.kernels(n), batch=4, element_size=2) for n in (alone, without)]
    parameters = 2 * 112 * 672 + 25 * 672 + 2 * 672 * 28 + 28 + 672
    assert both[0] - both[1] == pytest.approx(2 * (3 * x + 4 * e + 2 * 672 + parameters / 4))


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_fusing_more_moves_less(mode: str) -> None:
    for name in ("b0", "b4", "b7"):
        network = blocks.network(name)
        eager, compiled, fused = (
            roofline.bytes_per_image(roofline.kernels(network, design, mode), 64)
            for design in ("eager", "compiled", "fused")
        )
        assert eager > 1.5 * compiled > 1.5 * 1.4 * fused


def test_floor_is_the_tightest_limit() -> None:
    work = roofline.kernels(blocks.network("b0"))
    memory = roofline.seconds_per_image(work, roofline.Device(1e12), 8)
    assert memory == pytest.approx(roofline.bytes_per_image(work, 8) / 1e12)
    slow_math = roofline.seconds_per_image(work, roofline.Device(1e12, dense_flops=1e6), 8)
    assert slow_math > 2 * sum(k.dense for k in work) / 1e6
    with pytest.raises(EffnetFastError, match="roofline"):
        roofline.kernels(blocks.network("b0"), "magic")
