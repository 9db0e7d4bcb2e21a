"""What the package brings along: no network unless asked, licences of what it depends on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from environments import ROOT, run

PAGE = ROOT / "docs" / "reliability.md"


def test_no_network_at_import_and_use(tmp_path: Path) -> None:
    """Importing, patching, inferring, training, optimizing, reporting and the command's help open no socket."""
    code = """
import sys, torch
def refuse(event, args):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")):
        raise AssertionError(f"network: {event} {args}")
sys.addaudithook(refuse)
import effnet_fast, effnet_fast.kernels
from effnet_fast.cli import main
model = effnet_fast.b0(num_classes=4)
model(torch.randn(2, 3, 64, 64)).sum().backward()
effnet_fast.report(effnet_fast.patch(effnet_fast.unpatch(model.eval())))
effnet_fast.backends("cpu")
if effnet_fast.backend.native.available("_ops")[0]:
    effnet_fast.optimize(model, (1, 3, 64, 64))(torch.randn(1, 3, 64, 64))
assert main(["info"]) == 0 and main(["models"]) == 0
"""
    done = run([sys.executable, "-c", code], tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_audit_hook_sees_a_connection(tmp_path: Path) -> None:
    code = """
import sys, socket
def refuse(event, args):
    if event.startswith("socket."):
        raise AssertionError(event)
sys.addaudithook(refuse)
socket.create_connection(("127.0.0.1", 9), timeout=1)
"""
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode and "AssertionError: socket." in done.stderr


def test_licences_of_all_dependencies_are_listed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|build|nvcc|cli|demo|bench|dev) = \[(.*?)\]$", text, re.M | re.S)
    quoted = {name for part in lists for name in re.findall(r'"([A-Za-z0-9_-]+)', part)} - {"effnet-fast"}
    assert {"torch", "pillow", "timm", "hypothesis", "ninja"} <= quoted
    section = PAGE.read_text().split("## Licences")[1].split("\n## ")[0]
    listed = {cell for row in re.findall(r"^\| (.+?) \|", section, re.M) for cell in row.split(", ")}
    assert quoted <= listed, f"no licence listed: {sorted(quoted - listed)}"
