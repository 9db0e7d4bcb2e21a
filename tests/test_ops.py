"""The primitives as autograd ops: gradients, contracts with PyTorch's machinery, bad input."""

import pytest
import torch
from torch.autograd import gradcheck as full_gradcheck

from effnet_fast import BackendError, EffnetFastError, ops, use_backend
from effnet_fast.ops import mbconv


@pytest.fixture(autouse=True)
def _reference():
    with use_backend("reference"):
        yield


def gradcheck(function, inputs) -> bool:
    """Random projections of the Jacobian: the full one takes minutes over all the cases here."""
    return full_gradcheck(function, inputs, fast_mode=True)


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def flatten(weights: ops.Weights) -> list[torch.Tensor]:
    parts = (p for part in weights for p in (part if isinstance(part, tuple) else (part,)))
    return [t for t in parts if isinstance(t, torch.Tensor)]


def present(out) -> tuple[torch.Tensor, ...]:
    return tuple(t for t in out if t is not None)


DEPTHWISE = {
    "raw-stats": {"stats": True, "pool": True},
    "affine-silu-pool": {"affine": True, "act": "silu", "pool": True},
    "act-only": {"act": "hardswish"},
    "prologue": {"in_affine": True, "in_act": "silu", "stats": True},
    "both": {"in_affine": True, "in_act": "relu6", "affine": True, "act": "silu"},
    "prologue-act-only": {"in_act": "silu"},
}


@pytest.mark.parametrize("case", DEPTHWISE)
@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, (1, 0, 1, 2)), (5, 1, 2), (7, 2, (3, 2, 2, 3))])
def test_depthwise_gradients(case: str, kernel: int, stride: int, padding) -> None:
    options = dict(DEPTHWISE[case])
    x, weight = leaf(2, 3, 6, 5), leaf(3, 1, kernel, kernel)
    vectors = [leaf(3) for _ in range(4)]
    if options.pop("in_affine", False):
        options["in_affine"] = (vectors[0], vectors[1])
    if options.pop("affine", False):
        options["affine"] = (vectors[2], vectors[3])
    assert gradcheck(
        lambda *_: present(ops.depthwise(x, weight, stride, padding, **options)), (x, weight, *vectors)
    )


@pytest.mark.parametrize("prologue", ["none", "affine-act-gate", "gate", "act"])
@pytest.mark.parametrize("epilogue", ["raw-stats", "affine-act-residual-pool", "residual"])
def test_pointwise_gradients(prologue: str, epilogue: str) -> None:
    x, weight = leaf(2, 3, 4, 3), leaf(5, 3)
    in_affine, affine = (leaf(3), leaf(3)), (leaf(5), leaf(5))
    gate, row_scale, residual = leaf(2, 3), leaf(2), leaf(2, 5, 4, 3)
    before = {
        "none": {},
        "affine-act-gate": {"in_affine": in_affine, "in_act": "silu", "gate": gate},
        "gate": {"gate": gate},
        "act": {"in_act": "silu"},
    }[prologue]
    after = {
        "raw-stats": {"stats": True, "pool": True},
        "affine-act-residual-pool": {
            "affine": affine,
            "act": "hardswish",
            "row_scale": row_scale,
            "residual": residual,
            "pool": True,
        },
        "residual": {"residual": residual},
    }[epilogue]
    inputs = (x, weight, *in_affine, *affine, gate, row_scale, residual)
    assert gradcheck(lambda *_: present(ops.pointwise(x, weight, **before, **after)), inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_squeeze_excite_gradients(bias: bool) -> None:
    pooled, w1, w2 = leaf(3, 6), leaf(2, 6), leaf(6, 2)
    b1, b2 = (leaf(2), leaf(6)) if bias else (None, None)
    inputs = present((pooled, w1, b1, w2, b2))
    assert gradcheck(lambda *_: ops.squeeze_excite(pooled, w1, b1, w2, b2, "silu", "hardsigmoid"), inputs)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_finalize_gradients(affine: bool) -> None:
    mean, var = leaf(4), torch.rand(4, dtype=torch.float64).add_(0.5).requires_grad_()
    weight, bias = (leaf(4), leaf(4)) if affine else (None, None)

    def run(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(ops.batch_norm_finalize(torch.stack([mean, var]), weight, bias))

    assert gradcheck(run, present((mean, var, weight, bias)))


def test_training_batch_norm_composed_from_primitives() -> None:
    x, w1, w2 = leaf(4, 3, 6, 6), leaf(8, 3), leaf(8, 1, 3, 3)
    bn = torch.nn.BatchNorm2d(8, dtype=torch.float64)
    torch.nn.init.normal_(bn.weight)
    e, _, stats = ops.pointwise(x, w1, stats=True)
    affine = ops.batch_norm_finalize(stats, bn.weight, bn.bias, bn.eps)
    y = ops.depthwise(e, w2, 1, 1, in_affine=affine, in_act="silu").y
    a = torch.nn.functional.silu(bn(torch.nn.functional.conv2d(x, w1[:, :, None, None])))
    expected = torch.nn.functional.conv2d(a, w2, padding=1, groups=8)
    torch.testing.assert_close(y, expected)
    inputs = (x, w1, w2, bn.weight, bn.bias)
    dy = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(got, want)


def image(*shape: int, layout: torch.memory_format, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()


LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)


@LAYOUTS
@pytest.mark.parametrize(
    "size", [(2, 4, 5, 6), (3, 4, 1, 1), (2, 1, 4, 4)], ids=["image", "1x1", "one-channel"]
)
def test_opcheck(layout: torch.memory_format, size: tuple[int, ...]) -> None:
    x = image(*size, layout=layout)
    c = size[1]
    vector = [torch.randn(c) for _ in range(4)]
    weight = torch.randn(c, 1, 3, 3, requires_grad=True)
    checked = torch.library.opcheck
    checked(torch.ops.effnet_fast.depthwise.default, (x, weight, 2, [1, 1, 1, 1], *vector[:2], "silu", *vector[2:], "silu", True, False))  # fmt: skip
    checked(torch.ops.effnet_fast.depthwise.default, (x, weight, 1, [1, 1, 1, 1], None, None, "none", None, None, "none", False, True))  # fmt: skip
    matrix, gate, residual = torch.randn(7, c, requires_grad=True), torch.randn(size[:2]), image(size[0], 7, *size[2:], layout=layout)  # fmt: skip
    wide = [torch.randn(7), torch.randn(7)]
    checked(torch.ops.effnet_fast.pointwise.default, (x, matrix, *vector[:2], "silu", gate, *wide, "silu", None, residual, True, False))  # fmt: skip
    checked(torch.ops.effnet_fast.pointwise.default, (x, matrix, None, None, "none", None, None, None, "none", None, None, False, True))  # fmt: skip
    pooled = torch.randn(size[:2], requires_grad=True)
    checked(torch.ops.effnet_fast.squeeze_excite.default, (pooled, torch.randn(2, c), None, torch.randn(c, 2), torch.randn(c), "silu", "sigmoid"))  # fmt: skip
    checked(torch.ops.effnet_fast.batch_norm_finalize.default, (torch.rand(2, c).requires_grad_(), torch.randn(c), None, 1e-5))  # fmt: skip


@LAYOUTS
def test_compile_fullgraph(layout: torch.memory_format) -> None:
    def block(x, w1, w2, w3):
        e, _, stats = ops.pointwise(x, w1, stats=True)
        affine = ops.batch_norm_finalize(stats)
        d, pooled, _ = ops.depthwise(e, w2, 2, 1, in_affine=affine, in_act="silu", pool=True)
        gate = ops.squeeze_excite(pooled, w3, None, w3.t(), None)
        return ops.pointwise(d, w1.t(), gate=gate).y

    inputs = (
        image(2, 3, 6, 6, layout=layout),
        leaf(8, 3, dtype=torch.float32),
        leaf(8, 1, 3, 3, dtype=torch.float32),
    )
    inputs = (*inputs, leaf(2, 8, dtype=torch.float32))
    expected = block(*inputs)
    got = torch.compile(block, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(got, expected)
    dy = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_strided_and_expanded_inputs_and_gradients() -> None:
    base = torch.randn(2, 12, 7, 9, dtype=torch.float64)
    x = base[:, 2:8:2, 1:, ::2].requires_grad_()
    weight = torch.randn(3, 1, 6, 3, dtype=torch.float64)[:, :, ::2].requires_grad_()
    out = ops.depthwise(x, weight, 1, 1).y
    expected = torch.nn.functional.conv2d(x, weight, padding=1, groups=3)
    dy = torch.randn(3, dtype=torch.float64)[None, :, None, None].expand_as(out)
    kept = dy.clone()
    for a, b in zip(
        torch.autograd.grad(out, (x, weight), dy), torch.autograd.grad(expected, (x, weight), dy), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert torch.equal(dy, kept)


X, W = torch.randn(2, 4, 8, 8), torch.randn(4, 1, 3, 3)
BAD = {
    "rank": (lambda: ops.depthwise(X[0], W), r"ops\.depthwise: x: expected .*\[N, C, H, W\], got float32 \(4, 8, 8\)"),
    "dtype": (lambda: ops.depthwise(X.int(), W), "x: expected a float32"),
    "channels": (lambda: ops.depthwise(X, torch.randn(5, 1, 3, 3)), r"weight: expected float32 \(4, 1, 3, 3\)"),
    "weight-dtype": (lambda: ops.depthwise(X, W.half()), "weight: expected float32"),
    "kernel": (lambda: ops.depthwise(X, torch.randn(4, 1, 4, 4)), "k in 3, 5, 7"),
    "stride": (lambda: ops.depthwise(X, W, 3), "stride: expected 1 or 2, got 3"),
    "padding": (lambda: ops.depthwise(X, W, 1, (1, 1)), "padding: expected"),
    "negative-padding": (lambda: ops.depthwise(X, W, 1, -1), "padding: expected"),
    "too-small": (lambda: ops.depthwise(X[..., :2], W), "x: expected at least 3x3"),
    "activation": (lambda: ops.depthwise(X, W, act="gelu"), "act: expected one of .*silu.*, got 'gelu'"),
    "affine": (lambda: ops.depthwise(X, W, affine=torch.ones(4)), r"affine: expected a tuple \(scale, shift\)"),
    "affine-size": (lambda: ops.depthwise(X, W, affine=(torch.ones(3), torch.ones(4))), r"affine\.scale: expected \(4,\)"),
    "stats": (lambda: ops.depthwise(X, W, act="silu", stats=True), "stats: expected False"),
    "device": (lambda: ops.depthwise(X, W.to("meta")), "on cpu, got float32 .* on meta"),
    "pointwise-weight": (lambda: ops.pointwise(X, torch.randn(3, 5)), r"weight: expected float32 \(3, 4\)"),
    "gate": (lambda: ops.pointwise(X, torch.randn(3, 4), gate=torch.ones(4)), r"gate: expected \(2, 4\)"),
    "residual": (lambda: ops.pointwise(X, torch.randn(3, 4), residual=X), r"residual: expected float32 \(2, 3, 8, 8\)"),
    "pooled": (lambda: ops.squeeze_excite(X, W, None, W, None), r"pooled: expected .*\[N, C\]"),
    "gate-activation": (
        lambda: ops.squeeze_excite(X[:, :, 0, 0], torch.randn(2, 4), None, torch.randn(4, 2), None, gate_act="relu"),
        "gate_act: expected one of sigmoid, hardsigmoid",
    ),
    "stats-shape": (lambda: ops.batch_norm_finalize(torch.ones(3, 4)), r"stats: expected .*\[2, C\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(EffnetFastError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and str(caught.value).startswith("effnet_fast.ops.")


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="unknown backend 'cudnn'"), use_backend("cudnn"):
        pass


def block_inputs(dtype: torch.dtype, layout: torch.memory_format, expands: bool) -> tuple:
    cin, c, cout = 3, (6 if expands else 3), 3

    def bn(channels: int) -> list[torch.Tensor]:
        learnt = [torch.randn(channels, requires_grad=True) for _ in range(2)]
        return [*learnt, torch.randn(channels), torch.rand(channels) + 0.5]

    conv = [leaf(c, cin, dtype=dtype), *bn(c)] if expands else [None] * 5
    se = [torch.randn(2, c), torch.randn(2), torch.randn(c, 2), torch.randn(c)]
    flat = [*conv, leaf(c, 1, 3, 3, dtype=dtype), *bn(c), leaf(cout, c, dtype=dtype), *bn(cout), *se]
    return (image(2, cin, 5, 4, layout=layout, dtype=dtype), *flat, torch.rand(2), [1e-5] * 3)


@LAYOUTS
@pytest.mark.parametrize("expands", [True, False], ids=["expand", "no-expand"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_mbconv_opcheck(layout: torch.memory_format, expands: bool, dtype: torch.dtype) -> None:
    inputs = block_inputs(dtype, layout, expands)
    scalars = (1, [1, 1, 1, 1], "silu,silu,silu,sigmoid", True)
    torch.library.opcheck(
        torch.ops.effnet_fast.mbconv_training.default, (*inputs, [expands, True, False], *scalars)
    )
    with torch.no_grad():
        torch.library.opcheck(torch.ops.effnet_fast.mbconv_inference.default, (*inputs, *scalars))


@pytest.mark.parametrize("expands, se, residual", [(1, 1, 1), (1, 0, 0), (0, 1, 1), (0, 0, 0)])
@pytest.mark.parametrize("training", [(True,) * 3, (False,) * 3, (True, False, True)], ids=str)
def test_mbconv_gradients(expands: int, se: int, residual: int, training: tuple[bool, ...]) -> None:
    cin, c, cout = 3, (6 if expands else 3), (3 if residual else 4)

    def bn(channels: int, batch: bool) -> ops.BatchNorm:
        fixed = torch.randn(channels, dtype=torch.float64), torch.rand(channels, dtype=torch.float64) + 0.5
        return ops.BatchNorm(leaf(channels), leaf(channels), *fixed, 1e-5, batch)

    weights = ops.Weights(
        *((leaf(c, cin), bn(c, training[0])) if expands else (None, None)),
        *(leaf(c, 1, 3, 3), bn(c, training[1]), leaf(cout, c), bn(cout, training[2])),
        *((leaf(2, c), leaf(2), leaf(c, 2), leaf(c)) if se else (None,) * 4),
    )
    stride, padding = (1, (1, 1, 1, 1)) if residual else (2, (0, 1, 1, 0))
    settings = ops.Settings(stride, padding, "silu", "hardswish", "relu", "sigmoid", bool(residual))
    x, row_scale = leaf(3, cin, 5, 4), torch.rand(3, dtype=torch.float64)
    learnt = [t for t in flatten(weights) if t.requires_grad]
    assert gradcheck(lambda *_: mbconv(x, weights, settings, row_scale).y, (x, *learnt))


def test_mbconv_keeps_only_what_the_design_says() -> None:
    inputs = block_inputs(torch.float32, torch.channels_last, True)
    kept = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = torch.ops.effnet_fast.mbconv_training(
            *inputs, [True] * 3, 1, [1, 1, 1, 1], "silu,silu,silu,sigmoid", True
        )
    images = sorted(tuple(t.shape) for t in kept if t.dim() == 4 and t.shape[0] == 2)
    assert images == [(2, 3, 5, 4), (2, 3, 5, 4), (2, 6, 5, 4), (2, 6, 5, 4)]  # x and p, e and d
    assert out[0].shape == (2, 3, 5, 4)


def test_mbconv_settings_of_the_wrong_kind() -> None:
    weights = ops.Weights(None, None, W, ops.BatchNorm(*(None,) * 4, 1e-5, True), torch.randn(5, 4), ops.BatchNorm(*(None,) * 4, 1e-5, True), *(None,) * 4)  # fmt: skip
    settings = ops.Settings(1, (1, 1, 1, 1), "none", "silu", "silu", "sigmoid", True)
    with pytest.raises(EffnetFastError, match="settings.residual: expected False"):
        mbconv(X, weights, settings)
    with pytest.raises(EffnetFastError, match="settings.depthwise_act: expected one of"):
        mbconv(X, weights, settings._replace(residual=False, depthwise_act="gelu"))
