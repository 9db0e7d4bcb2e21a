"""Patched blocks against stock ones, and everything a user does to a model around it."""

import copy
import io
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import effnet_fast
from effnet_fast import EffnetFastError, UnsupportedBlockError, use_backend
from effnet_fast.nn import ConvBN, MBConvParts, SqueezeExcite

torchvision_efficientnet = pytest.importorskip("torchvision.models.efficientnet")


def shake_batch_norms(model: nn.Module) -> nn.Module:
    """Statistics and parameters as after some training: zeros and ones would hide mistakes."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return model


def torchvision_block(
    expand: float = 4, kernel: int = 5, stride: int = 1, cout: int = 8, p: float = 0.5
) -> nn.Module:
    config = torchvision_efficientnet.MBConvConfig(expand, kernel, stride, 8, cout, 1)
    return shake_batch_norms(torchvision_efficientnet.MBConv(config, p, nn.BatchNorm2d))


def own_block() -> nn.Module:
    block = effnet_fast.nn.MBConv(
        8, 8, expand_ratio=4, kernel_size=3, stride=1, squeeze_channels=2, stochastic_depth_prob=0.3
    )
    return shake_batch_norms(block)


def lite_block(size: int | None, stride: int) -> nn.Module:
    """efficientnet_lite_pytorch: ReLU6, SAME padding fixed for an image size or dynamic."""
    library = pytest.importorskip("efficientnet_lite_pytorch.model")
    utils = pytest.importorskip("efficientnet_lite_pytorch.utils")
    blocks, settings = utils.efficientnet_lite(image_size=size)
    args = blocks[1]._replace(input_filters=8, output_filters=8, stride=stride, kernel_size=5, se_ratio=None)
    return shake_batch_norms(library.MBConvBlock(args, settings, image_size=size))


def swish_block() -> nn.Module:
    """efficientnet_pytorch: memory-efficient swish and squeeze-and-excite."""
    library = pytest.importorskip("efficientnet_pytorch.model")
    utils = pytest.importorskip("efficientnet_pytorch.utils")
    blocks, settings = utils.efficientnet(image_size=None)
    args = blocks[1]._replace(input_filters=8, output_filters=8, stride=1)
    return shake_batch_norms(library.MBConvBlock(args, settings))


def timm_block(kind: str, **options) -> nn.Module:
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    common = {"stride": 1, "act_layer": nn.SiLU, "drop_path_rate": 0.5, "se_layer": blocks.SqueezeExcite}
    block = getattr(blocks, kind)(8, 8, **(common | options))
    return shake_batch_norms(block)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": torchvision_block,
    "torchvision-no-expand": lambda: torchvision_block(expand=1, kernel=3),
    "torchvision-stride2": lambda: torchvision_block(stride=2, cout=12),
    "own": own_block,
    "lite-static": lambda: lite_block(11, 2),
    "lite-dynamic": lambda: lite_block(None, 2),
    "lite-residual": lambda: lite_block(None, 1),
    "efficientnet_pytorch": swish_block,
    "timm": lambda: timm_block("InvertedResidual", dw_kernel_size=5, exp_ratio=4.0),
    "timm-same": lambda: timm_block("InvertedResidual", stride=2, exp_ratio=4.0, pad_type="same"),
    "timm-hardswish": lambda: timm_block(
        "InvertedResidual", exp_ratio=4.0, act_layer=nn.Hardswish, se_layer=None
    ),
    "timm-separable": lambda: timm_block("DepthwiseSeparableConv"),
}


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    stock = BLOCKS[name]().to(dtype)
    return (
        stock,
        effnet_fast.patch(copy.deepcopy(stock), strict=False),
        torch.randn(3, 8, 11, 11, dtype=dtype),
    )


def assert_same(
    stock: nn.Module, patched: nn.Module, x: torch.Tensor, *args, tolerance: float = 1e-10
) -> None:
    """Outputs, every gradient, and buffers after the step."""
    close = {"rtol": tolerance, "atol": tolerance}
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(7)
    expected = stock(a, *args)
    torch.manual_seed(7)
    got = patched(b, *args)
    torch.testing.assert_close(got, expected, **close)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    got.backward(dy)
    torch.testing.assert_close(b.grad, a.grad, **close)
    for (name, p), q in zip(stock.named_parameters(), patched.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, **close, msg=lambda m, name=name: f"{name}: {m}")
    for (name, p), q in zip(stock.named_buffers(), patched.buffers(), strict=True):
        torch.testing.assert_close(q, p, **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_patched_block_is_the_stock_block(name: str, mode: str) -> None:
    stock, patched, x = pair(name)
    stock.train(mode == "train")
    patched.train(mode == "train")
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1, str(effnet_fast.report(patched))
        assert_same(stock, patched, x)
        with torch.no_grad():
            torch.manual_seed(3)
            expected = stock(x)
            torch.manual_seed(3)
            torch.testing.assert_close(patched(x), expected, rtol=1e-10, atol=1e-10)


def test_drop_connect_rate_reaches_the_block() -> None:
    stock, patched, x = pair("efficientnet_pytorch")
    with use_backend("reference"):
        assert_same(stock, patched, x, 0.5)


FROZEN: dict[str, Callable[[nn.Module], None]] = {
    "all-batch-norms": lambda m: [b.eval() for b in m.modules() if isinstance(b, nn.BatchNorm2d)],
    "one-batch-norm": lambda m: m.block[1][1].eval(),
    "cumulative-average": lambda m: [setattr(b, "momentum", None) for b in m.modules() if isinstance(b, nn.BatchNorm2d)],
    "without-affine": lambda m: m.block[0].__setitem__(1, nn.BatchNorm2d(32, affine=False, dtype=torch.float64)),
    "without-running-statistics": lambda m: m.block[0].__setitem__(
        1, nn.BatchNorm2d(32, track_running_stats=False, dtype=torch.float64)
    ),
    "frozen-weights": lambda m: [p.requires_grad_(False) for p in m.block[1].parameters()],
    "half-frozen-batch-norm": lambda m: m.block[1][1].bias.requires_grad_(False),
}  # fmt: skip


@pytest.mark.parametrize("how", FROZEN)
def test_partly_frozen(how: str) -> None:
    stock, patched, x = pair("torchvision")
    FROZEN[how](stock)
    FROZEN[how](patched)
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1, str(effnet_fast.report(patched))
        for _ in range(2):
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            torch.manual_seed(7)
            expected = stock(a)
            torch.manual_seed(7)
            got = patched(b)
            expected.square().sum().backward()
            got.square().sum().backward()
            torch.testing.assert_close(got, expected)
            torch.testing.assert_close(b.grad, a.grad)
            for p, q in zip(stock.parameters(), patched.parameters(), strict=True):
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)
            for p, q in zip(stock.buffers(), patched.buffers(), strict=True):
                torch.testing.assert_close(q, p)


def test_whole_torchvision_model_trains_alike() -> None:
    torch.manual_seed(0)
    stock = torchvision_efficientnet.efficientnet_b0(num_classes=5).double()
    patched = effnet_fast.patch(copy.deepcopy(stock), strict=False)
    with use_backend("reference"):
        report = effnet_fast.report(patched)
        assert report.fused == len(report.rows) == 16
        assert_same(stock, patched, torch.randn(2, 3, 64, 64, dtype=torch.float64), tolerance=1e-8)


REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "forward-hook": (
        lambda m: m.block[1].register_forward_hook(lambda *_: None),
        "a hook is registered on its",
    ),
    "pre-hook": (lambda m: m.block[1][0].register_forward_pre_hook(lambda *_: None), "a hook is registered"),
    "backward-hook": (
        lambda m: m.block[3][0].register_full_backward_hook(lambda *_: None),
        "a hook is registered",
    ),
    "parametrization": (
        lambda m: nn.utils.parametrizations.weight_norm(m.block[1][0]),
        "ParametrizedConv2d is not nn.Conv2d",
    ),
    "old-weight-norm": (lambda m: nn.utils.spectral_norm(m.block[1][0]), "a hook is registered"),
    "sync-batch-norm": (
        lambda m: m.block[0].__setitem__(1, nn.SyncBatchNorm.convert_sync_batchnorm(m.block[0][1])),
        "SyncBatchNorm after the expand convolution",
    ),
    "group-norm": (lambda m: m.block[1].__setitem__(1, nn.GroupNorm(4, 32)), "GroupNorm after the depthwise"),
    "activation": (lambda m: m.block[0].__setitem__(2, nn.GELU()), "activation GELU has no fused kernel"),
    "conv-bias": (
        lambda m: m.block[0].__setitem__(0, nn.Conv2d(8, 32, 1)),
        "the expand convolution has a bias",
    ),
    "dilation": (
        lambda m: m.block[1].__setitem__(
            0, nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32, bias=False)
        ),
        "dilated",
    ),
    "kernel": (
        lambda m: m.block[1].__setitem__(0, nn.Conv2d(32, 32, 9, padding=4, groups=32, bias=False)),
        "depthwise kernel .9, 9. is not",
    ),
    "grouped": (
        lambda m: m.block[1].__setitem__(0, nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False)),
        "wider groups",
    ),
    "extra-layer": (lambda m: m.block.append(nn.Identity()), "5 layers"),
    "other-stochastic-depth": (
        lambda m: setattr(m, "stochastic_depth", nn.Identity()),
        "not stochastic depth",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_the_kernels_do_not_know_runs_eager_and_says_why(how: str) -> None:
    change, reason = REFUSED[how]
    stock, patched, _ = pair("torchvision", torch.float32)
    x = torch.randn(2, 8, 11, 11)
    change(stock)
    change(patched)
    patched.load_state_dict(stock.state_dict())
    for block in (stock, patched):
        block.eval()
    with use_backend("reference"):
        (row,) = effnet_fast.report(patched).rows
        assert row.state == "eager"
        assert re.search(reason, row.reason), row.reason
        with pytest.raises(EffnetFastError, match=reason):
            effnet_fast.patch(copy.deepcopy(stock), strict=True)
        if how != "extra-layer":
            torch.testing.assert_close(patched(x), stock(x))


def test_hooks_inside_are_called_and_hooks_on_the_block_too() -> None:
    _, patched, x = pair("torchvision")
    seen: list[str] = []
    patched.register_forward_hook(lambda *_: seen.append("block"))
    with use_backend("reference"):
        patched(x)
        patched.block[1].register_forward_hook(lambda *_: seen.append("inner"))
        patched(x)
    assert seen == ["block", "inner", "block"]


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"s2d": 1, "stride": 2, "exp_ratio": 2.0}, "space-to-depth"),
        ({"dilation": 2, "exp_ratio": 2.0}, "dilated"),
        ({"exp_kernel_size": 3, "exp_ratio": 2.0}, "expand convolution is not a plain 1x1"),
        ({"group_size": 8, "exp_ratio": 2.0}, "wider groups"),
        ({"act_layer": nn.GELU, "exp_ratio": 2.0}, "GELU"),
    ],
)
def test_timm_variants_without_kernels_run_eager(options: dict, reason: str) -> None:
    stock = timm_block("InvertedResidual", **options).eval()
    patched = effnet_fast.patch(copy.deepcopy(stock))
    with use_backend("reference"):
        (row,) = effnet_fast.report(patched).rows
        assert row.state == "eager" and reason in row.reason, row.reason
        x = torch.randn(2, 8, 12, 12)
        torch.testing.assert_close(patched(x), stock(x))


def test_global_hook_runs_eager() -> None:
    stock, patched, x = pair("torchvision")
    stock.eval()
    patched.eval()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module).__name__)
    )
    try:
        with use_backend("reference"):
            patched(x)
    finally:
        handle.remove()
    assert seen.count("Conv2d") == 5


def test_strict_refusal_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(torchvision_block(), torchvision_block())
    model[1].block[0][2] = nn.GELU()
    before = [type(m) for m in model.modules()]
    with (
        use_backend("reference"),
        pytest.raises(EffnetFastError, match="1 cannot run fused: activation GELU"),
    ):
        effnet_fast.patch(model, strict=True)
    assert [type(m) for m in model.modules()] == before
    with pytest.raises(EffnetFastError, match="no MBConv block found in Linear"):
        effnet_fast.patch(nn.Linear(1, 1), strict=True)


def test_filter_and_unpatch() -> None:
    model = nn.Sequential(torchvision_block(), torchvision_block())
    kinds = [type(m) for m in model]
    assert effnet_fast.patch(model, filter_fn=lambda block, name: name == "1") is model
    assert [type(m) is k for m, k in zip(model, kinds, strict=True)] == [True, False]
    assert [row.reason == "not patched" for row in effnet_fast.report(model).rows][0]
    once = type(model[1])
    effnet_fast.patch(effnet_fast.patch(model))
    assert type(model[1]) is once and isinstance(model[0], kinds[0])
    assert effnet_fast.unpatch(model) is model
    assert [type(m) for m in model] == kinds


@pytest.mark.parametrize("argument", ["a path", None, 3])
def test_not_a_model(argument: object) -> None:
    for function in (effnet_fast.patch, effnet_fast.report):
        with pytest.raises(EffnetFastError, match=r"model must be a torch\.nn\.Module, got"):
            function(argument)


def _save_and_load(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": _save_and_load,
    "data-parallel-replica": lambda m: m._replicate_for_data_parallel(),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["torchvision", "own", "efficientnet_pytorch"])
def test_copies_stay_patched_and_keep_their_own_weights(how: str, name: str) -> None:
    _, patched, x = pair(name)
    patched.eval()
    with use_backend("reference"):
        expected = patched(x)
        other = COPIES[how](patched)
        assert type(other) is type(patched)
        torch.testing.assert_close(other(x), expected)
        if how != "data-parallel-replica":
            with torch.no_grad():
                next(other.parameters()).zero_()
            torch.testing.assert_close(patched(x), expected)


def test_state_dict_and_repr_stay() -> None:
    stock, patched, _ = pair("torchvision")
    assert list(stock.state_dict()) == list(patched.state_dict())
    stock.load_state_dict(patched.state_dict(), strict=True)
    assert "MBConv[effnet_fast](" in repr(patched)
    assert [n for n, _ in stock.named_parameters()] == [n for n, _ in patched.named_parameters()]


def test_replaced_submodules_are_seen() -> None:
    _, patched, x = pair("torchvision")
    patched.eval()
    with use_backend("reference"):
        patched.block[2] = shake_batch_norms(copy.deepcopy(patched.block[2]))
        nn.init.zeros_(patched.block[2].fc2.weight)
        nn.init.constant_(patched.block[2].fc2.bias, 30.0)  # gate = 1
        opened = patched(x)
        del patched.block[2]
        torch.testing.assert_close(patched(x), opened)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
@pytest.mark.parametrize("mode", ["train", "eval", "no-grad"])
def test_compile_fullgraph(layout: torch.memory_format, mode: str) -> None:
    _, patched, x = pair("torchvision", torch.float32)
    patched.train(mode == "train")
    x = x.contiguous(memory_format=layout)
    with use_backend("reference"), torch.set_grad_enabled(mode != "no-grad"):
        expected = copy.deepcopy(patched)
        compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
        torch.manual_seed(5)
        want = expected(x)
        torch.manual_seed(5)
        got = compiled(x)
        torch.testing.assert_close(got, want)
        if mode != "no-grad":
            want.sum().backward()
            got.sum().backward()
            for p, q in zip(expected.parameters(), patched.parameters(), strict=True):
                torch.testing.assert_close(q.grad, p.grad)
        for p, q in zip(expected.buffers(), patched.buffers(), strict=True):
            torch.testing.assert_close(q, p)


def test_inductor() -> None:
    _, patched, x = pair("torchvision", torch.float32)
    patched.eval()
    with use_backend("reference"), torch.no_grad():
        torch.testing.assert_close(
            torch.compile(patched, fullgraph=True)(x), patched(x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("how", ["export", "trace", "script", "fx"])
def test_other_program_forms_record_the_stock_block(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # TorchScript cannot compile the Python functions that poison memory.
    monkeypatch.undo()
    stock, patched, x = pair("torchvision", torch.float32)
    stock.eval()
    patched.eval()
    with use_backend("reference"), torch.no_grad():
        if how == "export":
            program = torch.export.export(patched, (x,)).module()
        elif how == "trace":
            program = torch.jit.trace(patched, x)
        elif how == "script":
            program = torch.jit.script(patched)
        else:
            program = torch.fx.symbolic_trace(patched)
        torch.testing.assert_close(program(x), stock(x))
        text = str(program.code) if hasattr(program, "code") else str(program)
        assert "effnet_fast" not in text or how == "export"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_computes_in_its_dtype_and_keeps_parameters_wide(dtype: torch.dtype) -> None:
    stock, patched, x = pair("torchvision", torch.float32)
    with use_backend("reference"), torch.autocast("cpu", dtype=dtype):
        torch.manual_seed(2)
        expected = stock(x)
        torch.manual_seed(2)
        got = patched(x)
    assert got.dtype == expected.dtype == dtype
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.05, atol=0.1)
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in patched.parameters())
    assert patched.block[0][1].running_mean.dtype == torch.float32
    torch.testing.assert_close(
        patched.block[0][1].running_mean, stock.block[0][1].running_mean, rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("shape", [(0, 8, 5, 5), (1, 8, 1, 1)], ids=["empty", "one-value"])
def test_degenerate_batches_behave_as_torch(shape: tuple[int, ...]) -> None:
    stock, patched, _ = pair("torchvision", torch.float32)
    x = torch.randn(shape)

    def outcome(block: nn.Module) -> object:
        try:
            return block(x).shape
        except ValueError as error:
            return str(error)

    with use_backend("reference"):
        assert outcome(stock) == outcome(patched)
        for p, q in zip(stock.buffers(), patched.buffers(), strict=True):
            torch.testing.assert_close(q, p)


def test_inputs_and_gradients_are_never_written() -> None:
    _, patched, x = pair("torchvision")
    kept = x.clone()
    leaf = x.requires_grad_()
    with use_backend("reference"):
        y = patched(leaf)
        dy = torch.randn_like(y)
        kept_dy = dy.clone()
        y.backward(dy)
    assert torch.equal(x.detach(), kept) and torch.equal(dy, kept_dy)


def test_data_assignment_is_seen() -> None:
    """No affine is cached: weights written behind autograd's back (EMA, quantization tools) count at once."""
    stock, patched, x = pair("torchvision")
    stock.eval()
    patched.eval()
    with use_backend("reference"), torch.no_grad():
        patched(x)
        for block in (stock, patched):
            block.block[0][1].weight.data.mul_(2)
            block.block[0][1].running_var.data.mul_(3)
        torch.testing.assert_close(patched(x), stock(x))


class PlainBlock(nn.Module):
    """A user's own MBConv without squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.project = nn.Conv2d(16, 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = nn.functional.relu6(self.bn1(self.expand(x)))
        a = nn.functional.relu6(self.bn2(self.depthwise(a)))
        return x + self.bn3(self.project(a))


class SENetBlock(PlainBlock):
    """The same with SENet's squeeze-and-excite: linear layers without bias, ReLU, reduction 16."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(16, 1, bias=False), nn.ReLU(), nn.Linear(1, 16, bias=False), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = nn.functional.relu6(self.bn1(self.expand(x)))
        a = nn.functional.relu6(self.bn2(self.depthwise(a)))
        gate = self.fc(a.mean(dim=(2, 3)))
        return x + self.bn3(self.project(a * gate[:, :, None, None]))


def plain_parts(block: PlainBlock) -> MBConvParts:
    return MBConvParts(
        ConvBN(block.depthwise, block.bn2, "relu6"),
        ConvBN(block.project, block.bn3),
        expand=ConvBN(block.expand, block.bn1, "relu6"),
        residual=True,
        padding=(1, 1, 1, 1),
    )


def senet_parts(block: SENetBlock) -> MBConvParts:
    return plain_parts(block)._replace(
        squeeze_excite=SqueezeExcite(block.fc[0], block.fc[2], "relu", "sigmoid")
    )


@pytest.mark.parametrize("kind, adapter", [(PlainBlock, plain_parts), (SENetBlock, senet_parts)])
def test_blocks_of_ones_own(kind: type[nn.Module], adapter: Callable[..., MBConvParts]) -> None:
    stock = shake_batch_norms(kind()).double()
    assert effnet_fast.report(stock).rows == []
    effnet_fast.register_block(kind, adapter)
    patched = effnet_fast.patch(copy.deepcopy(stock))
    with use_backend("reference"):
        assert effnet_fast.report(patched).fused == 1
        assert_same(stock, patched, torch.randn(2, 4, 6, 6, dtype=torch.float64))


def test_register_block_refuses_nonsense() -> None:
    with pytest.raises(EffnetFastError, match="block_class must be a subclass of nn.Module"):
        effnet_fast.register_block("MBConv", plain_parts)
    with pytest.raises(EffnetFastError, match="adapter must be callable"):
        effnet_fast.register_block(PlainBlock, None)


def test_an_adapter_may_refuse() -> None:
    class Odd(PlainBlock):
        pass

    def refuse(block: nn.Module) -> MBConvParts:
        raise UnsupportedBlockError("odd on purpose")

    effnet_fast.register_block(Odd, refuse)
    patched = effnet_fast.patch(Odd())
    assert effnet_fast.report(patched).rows[0].reason == "odd on purpose"
    assert patched(torch.randn(2, 4, 5, 5)).shape == (2, 4, 5, 5)
    assert "odd on purpose" in str(effnet_fast.report(patched))
