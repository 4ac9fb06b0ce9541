"""Parameter groups: what decays, what does not, and nothing twice."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from instseg.engine.optim import build_optimizer, describe_groups


class ForeignNorm(nn.Module):
    """A norm of a class that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.batch_norm = nn.BatchNorm2d(4)
        self.layer_norm = nn.LayerNorm([4, 2, 2])  # weight and bias with three dimensions
        self.group_norm = nn.GroupNorm(2, 4)
        self.foreign_norm = ForeignNorm()
        self.attention = nn.MultiheadAttention(4, 2)
        self.embedding = nn.Parameter(torch.zeros(5, 4))
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.embedding
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


DECAY = {
    "conv.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "embedding",
}
NO_DECAY = {
    "conv.bias",
    "batch_norm.weight",
    "batch_norm.bias",
    "layer_norm.weight",
    "layer_norm.bias",
    "group_norm.weight",
    "group_norm.bias",
    "foreign_norm.weight",
    "attention.in_proj_bias",
    "attention.out_proj.bias",
    "decoder.bias",
}


def test_groups() -> None:
    model = Net()
    optimizer = build_optimizer(model, name="sgd", lr=0.1, weight_decay=0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["name"]: [names[id(parameter)] for parameter in group["params"]]
        for group in optimizer.param_groups
    }
    assert sorted(groups["decay"]) == sorted(DECAY)
    assert sorted(groups["no_decay"]) == sorted(NO_DECAY)
    assert {g["name"]: g["weight_decay"] for g in optimizer.param_groups} == {
        "decay": 0.01,
        "no_decay": 0.0,
    }
    assert {n for n, p in model.named_parameters() if p.requires_grad} == DECAY | NO_DECAY


def test_settings_reach_the_optimizer() -> None:
    sgd = build_optimizer(Net(), name="sgd", lr=0.1, weight_decay=0.0, momentum=0.8, nesterov=True)
    assert isinstance(sgd, SGD)
    adamw = build_optimizer(Net(), name="adamw", lr=0.2, weight_decay=0.0, betas=(0.8, 0.9))
    assert isinstance(adamw, AdamW)
    for group in sgd.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.8, True)
    for group in adamw.param_groups:
        assert (group["lr"], group["betas"]) == (0.2, (0.8, 0.9))


def test_report() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = build_optimizer(model, name="adamw", lr=0.1, weight_decay=0.05)
    assert describe_groups(optimizer).splitlines() == [
        "decay: 1 tensors, 108 values, lr 0.1, weight decay 0.05",
        "no_decay: 3 tensors, 12 values, lr 0.1, weight decay 0",
    ]


def test_an_empty_group_is_left_out() -> None:
    optimizer = build_optimizer(nn.BatchNorm2d(4), name="sgd", lr=0.1, weight_decay=0.05)
    assert [group["name"] for group in optimizer.param_groups] == ["no_decay"]


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), name="sgd", lr=0.1, weight_decay=0.0)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'lion': choose sgd or adamw"):
        build_optimizer(Net(), name="lion", lr=0.1, weight_decay=0.0)  # type: ignore[arg-type]
