"""Convolution, BatchNorm and activation as one op, by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from effnet_fast import EffnetFastError
from effnet_fast.ops import BatchNorm, conv_bn_act


def norm(c: int, training: bool = True) -> BatchNorm:
    return BatchNorm(torch.ones(c), torch.zeros(c), None, None, 1e-5, training)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_in_any_order(dtype: torch.dtype, reference: None) -> None:
    """Beside channels_last images PyTorch's own backward refuses some of them in fp64."""
    torch.manual_seed(0)
    x, dense = torch.randn(2, 3, 4, 5, dtype=dtype), torch.randn(1, 3, 1, 2, dtype=dtype)
    bn = BatchNorm(None, None, torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype), 1e-5, False)
    grads = []
    for weight in (dense, dense.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        weight = weight.detach().requires_grad_()
        y = conv_bn_act(x, weight, bn, act="silu").y
        grads.append(torch.autograd.grad(y.square().sum(), weight)[0])
    torch.testing.assert_close(*grads)


BAD: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
    "x": (lambda x: conv_bn_act(x[0], torch.randn(4, 3, 3, 3), norm(4)), "conv_bn_act: x: expected"),
    "rank": (lambda x: conv_bn_act(x, torch.randn(4, 3), norm(4)), r"weight: expected \[C, Cin, kh, kw\]"),
    "channels": (
        lambda x: conv_bn_act(x, torch.randn(4, 2, 1, 1), norm(4)),
        r"weight: expected .*\(4, 3, 1, 1\)",
    ),
    "vector": (lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(5)), "bn.weight: expected"),
    "statistics": (lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4, False)), "bn.mean: expected"),
    "stride": (
        lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4), stride=0),
        "stride: expected an int >= 1",
    ),
    "padding": (
        lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4), padding=(1, 2, 3)),
        "padding: expected an int >= 0",
    ),
    "act": (lambda x: conv_bn_act(x, torch.randn(4, 3, 1, 1), norm(4), act="gelu"), "act: expected one of"),
    "small": (
        lambda x: conv_bn_act(x, torch.randn(4, 3, 9, 9), norm(4)),
        "x: expected an image large enough",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_input_is_named(how: str, reference: None) -> None:
    call, message = BAD[how]
    with pytest.raises(EffnetFastError, match=message):
        call(torch.randn(2, 3, 6, 6))


def test_the_op_alone(reference: None) -> None:
    """Training, frozen statistics and inference agree with PyTorch's functions."""
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    mean, var = torch.randn(5).double(), torch.rand(5).double() + 0.5
    for training, options in ((True, {}), (False, {}), (False, {"inference": True})):
        bn = BatchNorm(None, None, mean, var, 1e-3, training)
        out = conv_bn_act(x, weight, bn, stride=(2, 1), padding=(0, 1), act="hardswish", **options)
        z = nn.functional.conv2d(x, weight, None, (2, 1), (0, 1))
        y = nn.functional.hardswish(nn.functional.batch_norm(z, mean.clone(), var.clone(), None, None, training, 0.1, 1e-3))  # fmt: skip
        torch.testing.assert_close(out.y, y)
        if not options:
            assert out.stats is not None
            for a, b in zip(
                *(torch.autograd.grad(v.square().sum(), (x, weight)) for v in (out.y, y)), strict=True
            ):
                torch.testing.assert_close(a, b)
