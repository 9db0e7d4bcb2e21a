"""The CPU engine against PyTorch in fp64, layer shapes at random and every instruction set this machine can run."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import torch
from folded import block, conv, network, run_network
from op_cases import displaced
from torch import Tensor

from effnet_fast.backend import native
from effnet_fast.backend.cpu.engine import Program, compile_network
from effnet_fast.backend.network import Block, Conv, Network
from effnet_fast.backend.reference.activations import ACTIVATIONS
from effnet_fast.tolerance import allowed, error

pytestmark = pytest.mark.skipif(
    not native.available("_ops")[0], reason=native.available("_ops")[1] or "native"
)

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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
    if error(got, truth) > limit:
        # Of a single value PyTorch's error may be next to none, and ten times that a few roundings away.
        near = [displaced(dtype, roundings)(x).to(x.dtype) for roundings in (1.0, -1.0, 2.0, -2.0)]
        errors = [error(run_network(net, x.to(dtype)), run_network(net, x.double())) for x in near]
        limit = max(limit, 4 * max(errors))
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
