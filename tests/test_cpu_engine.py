"""The CPU engine against PyTorch in fp64, layer shapes at random and every instruction set this machine can run."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast import native
from effnet_fast.cpu.engine import Program, compile_network
from effnet_fast.errors import EffnetFastError, UnsupportedBlockError
from effnet_fast.inference.network import Block, Conv, Network, SqueezeExcite
from effnet_fast.reference.activations import ACTIVATIONS, activation
from effnet_fast.testing import allowed, error

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def conv(o: int, i: int, k: int, groups: int = 1, act: str = "none", **facts) -> Conv:  # type: ignore[no-untyped-def]
    scale = 1.5 / (i // groups * k * k) ** 0.5
    return Conv(
        torch.randn(o, i // groups, k, k) * scale, torch.randn(o) / 4, groups=groups, act=act, **facts
    )


def squeeze_excite(c: int, r: int, act: str = "silu", gate: str = "sigmoid") -> SqueezeExcite:
    w1, w2 = torch.randn(r, c) / c**0.5, torch.randn(c, r) / r**0.5
    return SqueezeExcite(w1, torch.randn(r) / 4, w2, torch.randn(c) / 4, act, gate)


def block(
    cin: int,
    cout: int,
    *,
    ratio: int = 6,
    kernel: int = 3,
    stride: int = 1,
    act: str = "silu",
    se: bool = True,
    same: bool = False,
    gate: str = "sigmoid",
) -> Block:
    c = cin * ratio
    side = kernel // 2
    return Block(
        None if ratio == 1 else conv(c, cin, 1, act=act),
        conv(c, c, kernel, c, act, stride=stride, padding="same" if same else (side,) * 4),
        squeeze_excite(c, max(1, cin // 4), act if act != "none" else "relu", gate) if se else None,
        conv(cout, c, 1),
        stride == 1 and cin == cout,
    )


def network(
    blocks: list[Block], stem: Conv, head: int | None = 70, classes: int | None = 11, pool: bool = True
) -> Network:
    last = blocks[-1].project.weight.shape[0] if blocks else stem.weight.shape[0]
    classifier = None
    if head is not None and classes is not None and pool:
        classifier = (torch.randn(classes, head) / head**0.5, torch.randn(classes) / 4)
    return Network(
        stem, tuple(blocks), None if head is None else conv(head, last, 1, act="silu"), classifier, pool
    )


def padded(x: Tensor, layer: Conv) -> Tensor:
    if layer.padding != "same":
        return F.pad(x, layer.padding)
    k, s = layer.weight.shape[-1], layer.stride
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n in (x.shape[3], x.shape[2])]
    return F.pad(x, [side for t in totals for side in (t // 2, t - t // 2)])


def run_conv(x: Tensor, layer: Conv) -> Tensor:
    y = F.conv2d(
        padded(x, layer), layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.stride, 0, 1, layer.groups
    )
    return activation(y, layer.act)


def run_network(net: Network, x: Tensor) -> Tensor:
    """The definition, in the dtype of ``x``."""
    y = run_conv(x, net.stem)
    for b in net.blocks:
        d = run_conv(y if b.expand is None else run_conv(y, b.expand), b.depthwise)
        if b.squeeze_excite is not None:
            se = b.squeeze_excite
            w1, b1, w2, b2 = (t.to(x.dtype) for t in se[:4])
            hidden = activation(F.linear(d.mean((2, 3)), w1, b1), se.act)
            d = d * activation(F.linear(hidden, w2, b2), se.gate)[:, :, None, None]
        p = run_conv(d, b.project)
        y = p + y if b.residual else p
    if net.head is None:
        return y
    y = run_conv(y, net.head)
    if not net.pool:
        return y
    y = y.mean((2, 3))
    return y if net.classifier is None else F.linear(y, *(t.to(x.dtype) for t in net.classifier))


def poison(program: Program) -> None:
    """NaN wherever a call could read what it has not written."""
    for workspace in program._workspaces:
        workspace.fill_(0xFF)


def assert_engine(net: Network, x: Tensor, dtype: torch.dtype) -> Tensor:
    program = compile_network(net, dtype)
    first = program.run(x)
    poison(program)
    got = program.run(x)
    assert torch.equal(got, first)
    truth, baseline = run_network(net, x.double()), run_network(net, x.to(dtype))
    assert got.shape == truth.shape and got.dtype == x.dtype
    if truth.dim() == 4:
        assert got.is_contiguous(memory_format=torch.channels_last)
    # Twice the rule: over a whole network the largest error of a few values is a matter of luck on either side.
    limit = 2 * allowed(baseline, truth, dtype)
    assert error(got, truth) <= limit, f"error {error(got, truth):.3e} exceeds {limit:.3e}"
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("after", ["silu", "relu", "none"])
@pytest.mark.parametrize("before", ["silu", "relu", None])
def test_each_activation_keeps_its_unit(isa: str, before: str | None, after: str, dtype: torch.dtype) -> None:
    # SiLU is computed in units, which the weights around it undo: they must do so beside every other activation.
    torch.manual_seed(3)
    b = block(24, 24, ratio=1 if before is None else 2, kernel=5, act="silu")
    b = b._replace(
        expand=None if b.expand is None else b.expand._replace(act=before),
        depthwise=b.depthwise._replace(act=after),
    )
    assert_engine(network([b, b], conv(24, 3, 3, stride=2)), torch.randn(2, 3, 21, 18), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e4, 1e12, 1e30])
def test_large_values(isa: str, size: float, dtype: torch.dtype) -> None:
    # An expansion and a depthwise convolution that hand each channel on: SiLU of +-size, and of NaN.
    eye, taps = torch.eye(16)[:, :, None, None], torch.zeros(16, 1, 3, 3)
    taps[:, :, 1, 1] = 1.0
    zeros = torch.zeros(16)
    b = Block(
        Conv(eye, zeros, act="silu"),
        Conv(taps, zeros, padding=(1, 1, 1, 1), groups=16, act="silu"),
        None,
        Conv(eye, zeros),
        False,
    )
    net = Network(Conv(eye[:, :2], zeros), (b,), None, None)
    x = torch.tensor([size, -size, torch.nan, 0.0]).view(1, 1, 1, 4).expand(1, 2, 1, 4).contiguous()
    # NaN times a weight of 0 is NaN: images apart, so that it stays where it is.
    images = x.permute(3, 1, 0, 2).contiguous()
    got = compile_network(net, dtype).run(images)[:, 0, 0, 0]
    assert abs(got[0] / size - 1) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert got[1] == 0 and got[2].isnan() and got[3] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_do_not_depend_on_how_outputs_are_stored(dtype: torch.dtype) -> None:
    # 40 x 40 x 192: past the caches where two threads share the image, through them with one.
    torch.manual_seed(4)
    net = network([block(32, 32, kernel=5)], conv(32, 3, 3, padding=(1, 1, 1, 1)))
    program, x = compile_network(net, dtype), torch.randn(1, 3, 40, 40)
    torch.set_num_threads(1)
    one = program.run(x)
    torch.set_num_threads(2)
    assert torch.equal(program.run(x), one)


def random_network(rng: random.Random, act: str) -> Network:
    """Odd channel counts, every kernel size, stride and padding; ends in one of the ways a network can end."""
    width = rng.choice((3, 8, 19, 24, 40, 65))
    stem = conv(width, 3, rng.choice((1, 3, 5)), act=act, stride=rng.choice((1, 2)), padding="same")
    blocks = []
    for _ in range(rng.randint(1, 3)):
        cout = rng.choice((width, 7, 16, 24, 56, 113))
        blocks.append(
            block(
                width,
                cout,
                ratio=rng.choice((1, 3, 6)),
                kernel=rng.choice((3, 5, 7)),
                stride=rng.choice((1, 1, 2)),
                act=act,
                se=rng.random() < 0.7,
                same=rng.random() < 0.5,
                gate=rng.choice(("sigmoid", "hardsigmoid")),
            )
        )
        width = cout
    head = rng.choice((None, 5, 70, 100))
    return network(blocks, stem, head, rng.choice((None, 1, 11, 40)), rng.random() < 0.8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_networks(isa: str, dtype: torch.dtype) -> None:
    for seed in range(24):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        # Sigmoids of sigmoids hardly depend on anything; with one more seed for each, all seven are covered.
        net = random_network(rng, ACTIVATIONS[seed % len(ACTIVATIONS)])
        x = torch.randn(rng.randint(1, 5), 3, rng.randint(5, 40), rng.randint(5, 40))
        try:
            assert_engine(net, x, dtype)
        except AssertionError as failure:
            raise AssertionError(f"seed {seed}: {failure}") from failure


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_shapes_of_efficientnet(dtype: torch.dtype, batch: int) -> None:
    """Panels of 48, bands of large maps, scaled pixels and scaled weights, more images than fit one group."""
    torch.manual_seed(0)
    blocks = [
        block(32, 16, ratio=1),
        block(16, 24, stride=2),
        block(24, 24),
        block(24, 40, kernel=5, stride=2),
        block(40, 112, kernel=5, stride=2),
        block(112, 112, kernel=5),
        block(112, 192, kernel=5, stride=2),
        block(192, 320),
    ]
    net = network(blocks, conv(32, 3, 3, act="silu", stride=2, padding=(1, 1, 1, 1)), 1280, 100)
    assert_engine(net, torch.randn(batch, 3, 128, 112), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_beyond_the_caches(isa: str, dtype: torch.dtype) -> None:
    """More than 4 MB of expanded channels, which are streamed to memory, in rows of several tiles of odd width."""
    torch.manual_seed(5)
    net = network([block(24, 24, ratio=8), block(24, 16, kernel=5)], conv(24, 3, 3, padding="same"))
    x = torch.randn(1, 3, 181, 131)
    assert_engine(net, x, dtype)
    program = compile_network(net, dtype)
    torch.set_num_threads(1)
    alone = program.run(x)
    torch.set_num_threads(3)
    assert torch.equal(program.run(x), alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_and_uneven_images(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    stem = conv(24, 3, 3, act="relu", stride=2, padding="same")
    net = network([block(24, 24, kernel=7, same=True), block(24, 33, kernel=5, stride=2)], stem)
    for size in ((1, 1), (1, 9), (2, 3), (17, 1), (7, 100), (3, 333)):
        assert_engine(net, torch.randn(2, 3, *size), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_dtypes_of_x(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    net = network([block(16, 16)], conv(16, 3, 3, act="silu", stride=2, padding=(1, 1, 1, 1)))
    program = compile_network(net, dtype)
    x = torch.randn(3, 3, 21, 18)
    want = program.run(x)
    wide = torch.randn(6, 5, 40, 40)
    wide[::2, 1:4, 3:24, 1:37:2] = x
    for same in (x.contiguous(memory_format=torch.channels_last), wide[::2, 1:4, 3:24, 1:37:2]):
        assert torch.equal(program.run(same), want)
    assert torch.equal(program.run(x.clone().requires_grad_()), want)
    half = x.bfloat16()
    got = program.run(half)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, program.run(half.float()).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_with_any_number_of_threads_and_images(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    blocks = [
        block(16, 24, stride=2),
        block(24, 24, kernel=5),
        block(24, 112, stride=2),
        block(112, 112, kernel=5),
    ]
    program = compile_network(
        network(blocks, conv(16, 3, 3, act="silu", stride=2, padding="same"), 200, 21), dtype
    )
    x = torch.randn(5, 3, 97, 64)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(program.run(x))
        results.append(torch.cat([program.run(image[None]) for image in x]))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_python_threads_at_once() -> None:
    torch.manual_seed(4)
    net = network(
        [block(16, 24, stride=2), block(24, 24)], conv(16, 3, 3, act="silu", stride=2, padding="same")
    )
    program = compile_network(net, torch.float32)
    inputs = [torch.randn(n, 3, 50 + n, 48) for n in (1, 2, 3, 1)]
    wanted = [program.run(x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            if not torch.equal(program.run(inputs[i]), wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    # No more workspaces than there were calls at the same time.
    assert 1 <= len(program._workspaces) <= 4


def test_step_times() -> None:
    net = network([block(8, 8)], conv(8, 3, 3, stride=2, padding="same"))
    times = compile_network(net, torch.float32).step_times(torch.randn(1, 3, 32, 32))
    # stem; expand and depthwise, squeeze, excite, project; head and pool; classifier
    assert [kind for kind, _ in times] == [0, 1, 2, 3, 4, 5, 6]
    assert all(duration >= 0 for _, duration in times)


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
        (good._replace(depthwise=conv(48, 48, 3, 24)), r"weight \[48, 1, k, k\]"),
        (good._replace(depthwise=good.depthwise._replace(padding=(-1, 0, 0, 0))), "padding"),
        (good._replace(depthwise=good.depthwise._replace(act="gelu")), "activation"),
        (good._replace(project=conv(9, 48, 1)), "residual"),
        (good._replace(squeeze_excite=squeeze_excite(40, 2)), "squeeze_excite"),
    ):
        with pytest.raises(UnsupportedBlockError, match=message):
            compile_network(network([bad], stem), torch.float32)
    with pytest.raises(UnsupportedBlockError, match="stem: expected groups = 1"):
        compile_network(network([], conv(6, 6, 3, 6)), torch.float32)
