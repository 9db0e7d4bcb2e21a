"""The table of ``report``: as text, as HTML, and each shared or long reason once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import effnet_fast
from effnet_fast.patching import Report, ReportRow

HOOK = "depthwise.conv has a hook"


@pytest.fixture
def report() -> Report:
    rows = [ReportRow("a", "MBConv", "fused", "cpu", "")]
    rows += [ReportRow(name, "MBConv", "eager", "", HOOK) for name in ("b", "c")]
    return Report(
        [*rows, ReportRow("d", "My<Block>", "eager", "", "other"), ReportRow("e", "B", "eager", "", "x" * 99)]
    )


def test_text(report: Report) -> None:
    assert str(report).splitlines() == [
        "block  class      runs   backend  reason",
        "a      MBConv     fused  cpu",
        "b      MBConv     eager           (1)",
        "c      MBConv     eager           (1)",
        "d      My<Block>  eager           other",
        "e      B          eager           (2)",
        f"(1) {HOOK}",
        f"(2) {'x' * 99}",
        "1 of 5 blocks fused",
    ]


def test_html(report: Report) -> None:
    text = report._repr_html_()
    assert text.count("<tr>") == 6 and text.count("<td>") == 25
    assert "<th>block</th><th>class</th>" in text
    assert text.count(HOOK) == 1 and "<td>(1)</td></tr>" in text
    assert "My&lt;Block&gt;" in text and "My<Block>" not in text
    assert "1 of 5 blocks fused" in text


def test_rows_keep_the_whole_reason(report: Report) -> None:
    assert [row["reason"] for row in report.as_dicts()] == ["", HOOK, HOOK, "other", "x" * 99]


def test_of_a_model() -> None:
    model = effnet_fast.b0().eval()
    for block in (model.features[2][0], model.features[3][1]):
        block.block[1][0].register_forward_hook(lambda *_: None)
    with torch.no_grad():
        report = effnet_fast.report(model)
    (reason,) = {row.reason for row in report.rows if row.state == "eager"}
    assert str(report).count(reason) == report._repr_html_().count(reason) == 1
    assert "16 of 18 blocks fused" in str(report)


def test_of_nothing() -> None:
    report = effnet_fast.report(nn.Linear(1, 1))
    assert str(report).splitlines()[-1] == "0 of 0 blocks fused"
    assert "<tbody>" in report._repr_html_()
