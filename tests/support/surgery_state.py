"""Operations of tests/support/surgery.py that change attributes and tensors, add hooks, or take the model as a whole."""

from __future__ import annotations

import copy
import io
import pickle
import random
from typing import Any

import torch
from surgery import NothingToDo, operation, pick
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import effnet_fast

# --- attributes, parameters, buffers ---


@operation
def change_attribute(model: nn.Module, rng: random.Random) -> nn.Module:
    changes: list[tuple[nn.Module, str, Any]] = []
    for m in model.modules():
        for name, values in ATTRIBUTES.items():
            if name in m.__dict__:
                changes += [(m, name, value) for value in values]
    # By name first: convolutions have most attributes and would take all turns.
    wanted = rng.choice(sorted({name for _, name, _ in changes}))
    module, name, value = rng.choice([change for change in changes if change[1] == wanted])
    setattr(module, name, value)
    return model


ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "eps": (0.1,),
    "momentum": (0.5, None),
    "track_running_stats": (False,),
    "stride": ((1, 1), (2, 2), (1, 2)),
    "padding": ((0, 0), (2, 2), (1, 2), "same"),
    "dilation": ((2, 2),),
    "padding_mode": ("reflect",),
    "_reversed_padding_repeated_twice": ([2, 2, 2, 2],),
    "use_res_connect": (False, True),
    "has_skip": (False, True),
    "id_skip": (False, True),
    "has_se": (False,),
    "p": (0.0, 0.9),
    "drop_prob": (0.0, 0.9),
    "scale_by_keep": (False,),
    "mode": ("batch",),
    "inplace": (True, False),
    "max_val": (3.0,),
    "min_val": (-1.0,),
    "output_size": (2,),
    "pool_type": ("max",),
    "training": (True, False),
    "static_padding": (nn.Identity(),),
}


@operation
def remove_a_tensor(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, bn = pick(model, rng, nn.BatchNorm2d)
    for name in rng.choice(
        (("running_mean", "running_var"), ("weight",), ("bias",), ("num_batches_tracked",))
    ):
        setattr(bn, name, None)
    return model


@operation
def write_weights(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, module = pick(model, rng, nn.Conv2d, nn.BatchNorm2d)
    with torch.no_grad():
        if rng.random() < 0.5:
            module.weight.data.mul_(-1.5)
        else:
            module.weight = nn.Parameter(torch.randn_like(module.weight))
    return model


@operation
def tie_weights(model: nn.Module, rng: random.Random) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    a = rng.choice(norms)
    same = [
        b
        for b in norms
        if b is not a and b.weight is not None and a.weight is not None and b.weight.shape == a.weight.shape
    ]
    if not same:
        raise NothingToDo
    rng.choice(same).weight = a.weight
    return model


@operation
def freeze(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, module = pick(model, rng)
    module.requires_grad_(False)
    if rng.random() < 0.5:
        module.eval()
    return model


@operation
def freeze_some_parameters(model: nn.Module, rng: random.Random) -> nn.Module:
    for _, p in model.named_parameters():
        p.requires_grad_(rng.random() < 0.5)
    return model


# --- hooks and reparametrizations ---


def _halve_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 0.5


def _double_input(module: nn.Module, inputs: Any) -> Any:
    return (inputs[0] * 2, *inputs[1:])


def _halve_gradient(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
    return tuple(None if g is None else g * 0.5 for g in grad_input)


def _scale_gradient(grad: Tensor) -> Tensor:
    return grad * 3


@operation
def hook(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, module = pick(model, rng)
    kind = rng.randrange(5)
    if kind == 0:
        module.register_forward_hook(_halve_output)
    elif kind == 1:
        module.register_forward_pre_hook(_double_input)
    elif kind == 2:
        module.register_full_backward_hook(_halve_gradient)
    elif kind == 3:
        module.register_forward_hook(_halve_output).remove()
    else:
        for p in module.parameters():
            if p.requires_grad:
                p.register_hook(_scale_gradient)
    return model


@operation
def reparametrize(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, conv = pick(model, rng, nn.Conv2d)
    kind = rng.randrange(3)
    if kind == 0:
        parametrizations.weight_norm(conv)
    elif kind == 1:
        prune.l1_unstructured(conv, "weight", 0.5)
    else:
        prune.l1_unstructured(conv, "weight", 0.5)
        prune.remove(conv, "weight")
    return model


# --- the model as a whole ---


@operation
def deep_copy(model: nn.Module, rng: random.Random) -> nn.Module:
    return copy.deepcopy(model)


@operation
def save_and_load(model: nn.Module, rng: random.Random) -> nn.Module:
    if rng.random() < 0.5:
        return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


@operation
def load_state_dict(model: nn.Module, rng: random.Random) -> nn.Module:
    state = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=rng.random() < 0.5)
    return model


@operation
def cast(model: nn.Module, rng: random.Random) -> nn.Module:
    before = next(model.parameters()).dtype
    return model.to(rng.choice((torch.float16, torch.bfloat16))).to(before)


@operation
def cast_a_part(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, module = pick(model, rng, nn.BatchNorm2d, nn.Conv2d)
    module.to(torch.float32)
    return model


@operation
def channels_last(model: nn.Module, rng: random.Random) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


@operation
def switch_mode(model: nn.Module, rng: random.Random) -> nn.Module:
    _, _, module = pick(model, rng)
    module.train(rng.random() < 0.5)
    return model


@operation
def average(model: nn.Module, rng: random.Random) -> nn.Module:
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    return averaged


@operation
def unpatch_and_patch(model: nn.Module, rng: random.Random) -> nn.Module:
    """Nothing, to a stock model."""
    if any(row.reason != "not patched" for row in effnet_fast.report(model).rows):
        effnet_fast.unpatch(model)
        if rng.random() < 0.7:
            effnet_fast.patch(model)
    return model
