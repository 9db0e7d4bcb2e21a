"""Compiled networks: what is refused, when they are compiled, read and run."""

from __future__ import annotations

import pytest
import torch
from folded import block, conv, network, squeeze_excite

from effnet_fast.backend import native
from effnet_fast.backend.cpu.engine import compile_network
from effnet_fast.errors import EffnetFastError, UnsupportedBlockError

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)


def test_wrong_arguments() -> None:
    stem = conv(8, 3, 3, stride=2, padding=(0, 0, 0, 0))
    program = compile_network(network([block(8, 8)], stem), torch.float32)
    for x, expected in (
        (torch.randn(3, 8, 8), r"x: expected \[N, 3, H, W\]"),
        (torch.randn(1, 4, 8, 8), r"x: expected \[N, 3, H, W\]"),
        (torch.randn(1, 3, 8, 8).double(), "float32 or bfloat16 on the CPU"),
        (torch.randn(0, 3, 8, 8), "at least one pixel"),
        (torch.randn(1, 3, 2, 9), "leaves the stem a pixel"),
    ):
        with pytest.raises(EffnetFastError, match=expected):
            program.run(x)
    with pytest.raises(EffnetFastError, match="expected float32 or bfloat16"):
        compile_network(network([], stem), torch.float16)


def test_wrong_native_arguments() -> None:
    program = compile_network(network([block(8, 8)], conv(8, 3, 3, padding="same")), torch.float32)
    run = native.ops().network_run
    x, records, weights = torch.randn(1, 3, 8, 8), program._records, program._weights
    size = native.ops().network_plan(records, 1, 8, 8)[0]
    workspace, out = torch.empty(size, dtype=torch.uint8), torch.empty(1, 11)
    for arguments, message in (
        ((x, records[:-1], weights, workspace, out, None), "program: expected"),
        ((x, records.int(), weights, workspace, out, None), "program: expected"),
        ((x, records, weights.view(torch.float32), workspace, out, None), "weights: expected"),
        ((x, records, weights[: weights.numel() // 2], workspace, out, None), "weights: expected"),
        ((x, records, weights, workspace[:-1], out, None), "workspace: expected"),
        ((x, records, weights, workspace, torch.empty(1, 12), None), "out: expected"),
        ((x, records, weights, workspace, out.double(), None), "out: expected"),
        ((x[:, :2], records, weights, workspace, out, None), "x: expected"),
        ((x, records, weights, workspace, out, torch.empty(3, dtype=torch.int64)), "times: expected"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(*arguments)


def test_what_cannot_run() -> None:
    stem = conv(8, 3, 3, padding="same")
    good = block(8, 8)
    for bad, message in (
        (good._replace(expand=conv(48, 8, 3)), "expand: expected a 1x1"),
        (good._replace(expand=conv(48, 9, 1)), "expand: expected a 1x1"),
        (good._replace(depthwise=conv(48, 48, 9, 48)), "kernel of 3, 5 or 7"),
        (good._replace(depthwise=good.depthwise._replace(stride=3)), "stride 1 or 2"),
        (good._replace(depthwise=conv(48, 48, 3, 24)), "depthwise: expected groups = 48, got 24"),
        (
            good._replace(depthwise=conv(48, 48, 3, 48)._replace(weight=torch.zeros(48, 2, 3, 3))),
            r"weight \[48, 1, k, k\]",
        ),
        (good._replace(depthwise=good.depthwise._replace(padding=(-1, 0, 0, 0))), "padding"),
        (good._replace(depthwise=good.depthwise._replace(act="gelu")), "activation"),
        (good._replace(project=conv(9, 48, 1)), "residual"),
        (good._replace(squeeze_excite=squeeze_excite(40, 2)), "squeeze_excite"),
    ):
        with pytest.raises(UnsupportedBlockError, match=message):
            compile_network(network([bad], stem), torch.float32)
    with pytest.raises(UnsupportedBlockError, match="stem: expected groups = 1"):
        compile_network(network([], conv(6, 6, 3, 6)), torch.float32)


@pytest.mark.parametrize("wrong", [-1, 1 << 19, 1 << 62])
def test_no_number_of_a_program_is_trusted(wrong: int) -> None:
    """Programs are tensors that anybody may hand over: whatever its numbers say, it is refused or reads its own weights only."""
    torch.manual_seed(0)
    blocks = [block(8, 8), block(8, 12, ratio=1, se=False, same=True, stride=2)]
    program = compile_network(network(blocks, conv(8, 3, 3, padding="same")), torch.float32)
    ops, x, out = native.ops(), torch.randn(1, 3, 6, 6), torch.empty(1, 11)
    records, weights = program._records, program._weights
    refused: list[str] = []
    for i in range(len(records)):
        changed = records.clone()
        changed[i] = wrong
        try:
            size = ops.network_plan(changed, 1, 6, 6)[0]
            if size < 1 << 28:
                ops.network_run(x, changed, weights, torch.empty(size, dtype=torch.uint8), out, None)
        except RuntimeError as error:
            refused.append(str(error))
    # Padding may be any small number, and nothing reads a layer that is not there.
    assert len(refused) > len(records) // 2
    assert all("effnet_fast.network_" in message for message in refused)
    for count in range(len(records)):
        with pytest.raises(RuntimeError, match="program: expected what network_compile made"):
            ops.network_plan(records[:count], 1, 6, 6)
    with pytest.raises(RuntimeError, match="program: expected what network_compile made"):
        ops.network_plan(torch.cat((records, records[-1:])), 1, 6, 6)


def test_descriptions_are_checked() -> None:
    """The native op on its own, which Python calls with descriptions that fit."""
    compile_op = native.ops().network_compile
    weight, bias = torch.randn(4, 3, 1, 1), torch.randn(4)
    stem = [1, 1, 0, 0, 0, 0, 0, 0]
    compile_op([weight], [bias], [0, 0, *stem, 0, 0], False)
    for arguments, message in (
        (([weight], [], [0, 0, *stem, 0, 0]), "stem: expected a weight and a bias"),
        (([weight], [bias], [0, 0, *stem]), "description: expected more numbers"),
        (([weight], [bias], [0, 0, *stem, 0, 0, 0]), "description: expected 1 layers and 12 numbers"),
        (([weight] * 2, [bias] * 2, [0, 0, *stem, 0, 0]), "description: expected 1 layers"),
        (([weight], [bias], [0, 2, *stem, 0, 0]), "description: expected a number of 0 to 1, got 2"),
        (([weight], [bias], [-1, 0, *stem, 0, 0]), "description: expected a number of 0 to 4096, got -1"),
        (([weight], [bias[:3]], [0, 0, *stem, 0, 0]), "stem: expected weight"),
        (([weight.half()], [bias], [0, 0, *stem, 0, 0]), "stem: expected float32 or bfloat16"),
    ):
        with pytest.raises(RuntimeError, match=message):
            compile_op(*arguments, False)
