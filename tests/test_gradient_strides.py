"""Gradients come with the strides of their parameters, as PyTorch's convolutions give them and DDP's buckets expect."""

import pytest
import torch
from patched_blocks import BLOCKS, shake_batch_norms
from torch import Tensor, nn

import effnet_fast
from effnet_fast import ops, use_backend

BACKENDS = {"reference": torch.float64, "cpu": torch.float32}


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = effnet_fast.efficientnet(
        width_mult=0.25, depth_mult=0.3, num_classes=5, dropout=0.0, stochastic_depth_prob=0.0
    )
    # Running statistics: those of a batch this small would amplify every rounding.
    return shake_batch_norms(model).eval().to(dtype).to(memory_format=torch.channels_last)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Straight from the backward: ``.grad`` would be a copy where the strides are others."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(model(x).square().sum(), parameters), strict=True))


def assert_strides(model: nn.Module, grads: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        assert grads[name].stride() == parameter.stride(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_channels_last_network_have_its_strides(backend: str) -> None:
    model, dtype = network(BACKENDS[backend]), BACKENDS[backend]
    x = torch.randn(3, 3, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with use_backend(backend):
        found = gradients(model, x)
    assert_strides(model, found)
    expected = gradients(effnet_fast.unpatch(model), x)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * value.norm(), name


def test_gradients_under_autocast_have_the_weights_strides() -> None:
    model = network(torch.float32)
    with use_backend("cpu"), torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, torch.randn(2, 3, 32, 32))
    assert_strides(model, found)


def test_compiled_gradients_have_the_weights_strides() -> None:
    model = network(torch.float64).features[:3]
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with use_backend("reference"):
        expected = gradients(model, x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        loss = compiled(x).square().sum()
        found = torch.autograd.grad(loss, list(model.parameters()))
    assert_strides(model, dict(zip(expected, found, strict=True)))
    for (name, value), grad in zip(expected.items(), found, strict=True):
        torch.testing.assert_close(grad, value, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_gradients_of_a_patched_block_have_its_strides(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]().double().to(memory_format=layout)
    x = torch.randn(2, 8, 11, 11, dtype=torch.float64)
    with use_backend("reference"):
        found = gradients(effnet_fast.patch(block), x)
    assert_strides(block, found)


def test_a_weight_whose_memory_has_another_order_gets_its_own_strides() -> None:
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    turned = torch.randn(6, 1, 3, 3, dtype=torch.float64).transpose(2, 3).requires_grad_()
    straight = turned.detach().contiguous().requires_grad_()
    with use_backend("reference"):
        found, expected = (
            torch.autograd.grad(ops.depthwise(x, w, padding=1).y.square().sum(), w)[0]
            for w in (turned, straight)
        )
    assert found.stride() == turned.stride() and expected.stride() == straight.stride()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_gradients_of_the_single_ops_have_the_weights_strides(layout: torch.memory_format) -> None:
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    for op, shape in ((ops.depthwise, (6, 1, 3, 3)), (ops.pointwise, (4, 6, 1, 1))):
        weight = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        with use_backend("reference"):
            (grad,) = torch.autograd.grad(op(x, weight).y.square().sum(), weight)
        assert grad.shape == weight.shape and grad.stride() == weight.stride()
