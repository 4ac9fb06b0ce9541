"""Parameter groups: what decays, what does not, and nothing twice."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from instseg.engine.optim import LrFactors, build_optimizer, describe_groups


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


class Detector(nn.Module):
    """A stem, two stages, a head; the first stage does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.backbone.bn1 = nn.BatchNorm2d(4)
        self.backbone.layer1 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.backbone.layer2 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.mask_head = nn.Conv2d(4, 1, 1)
        self.box_head = nn.Linear(4, 4)
        self.backbone.layer1.requires_grad_(False)


def rates(model: nn.Module, lr_factors: LrFactors, lr: float = 1.0) -> dict[str, float]:
    """The rate of every parameter that the optimizer has."""
    optimizer = build_optimizer(model, name="sgd", lr=lr, weight_decay=0.01, lr_factors=lr_factors)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layers_learn_the_slower_the_nearer_they_are_to_the_image() -> None:
    found = rates(Detector(), LrFactors(layer_decay=0.5), lr=0.8)
    assert found == pytest.approx(
        {
            "backbone.conv1.weight": 0.1,  # layer 0 of 3
            "backbone.bn1.weight": 0.1,
            "backbone.bn1.bias": 0.1,
            # Layer 1 does not train, and counts.
            "backbone.layer2.0.weight": 0.4,
            "backbone.layer2.0.bias": 0.4,
            "backbone.layer2.1.weight": 0.4,
            "backbone.layer2.1.bias": 0.4,
            "mask_head.weight": 0.8,
            "mask_head.bias": 0.8,
            "box_head.weight": 0.8,
            "box_head.bias": 0.8,
        }
    )


def test_factors_by_pattern_multiply_and_the_last_one_counts() -> None:
    patterns = {"backbone.*": 0.1, "mask_head": 2.0, "*.bn1.bias": 4.0}
    found = rates(Detector(), LrFactors(layer_decay=0.5, patterns=patterns))
    assert found["backbone.conv1.weight"] == pytest.approx(0.125 * 0.1)
    assert found["backbone.bn1.bias"] == pytest.approx(0.125 * 4)
    assert found["backbone.layer2.1.bias"] == pytest.approx(0.5 * 0.1)
    assert found["mask_head.bias"] == 2.0
    assert found["box_head.weight"] == 1.0
    assert rates(Detector(), LrFactors(patterns=patterns))["backbone.conv1.weight"] == 0.1


def test_report_of_groups_with_rates_of_their_own() -> None:
    factors = LrFactors(layer_decay=0.5, patterns={"mask_head.*": 2.0})
    optimizer = build_optimizer(
        Detector(), name="adamw", lr=0.1, weight_decay=0.05, lr_factors=factors
    )
    assert describe_groups(optimizer).splitlines() == [
        "decay: 1 tensors, 16 values, lr 0.1, weight decay 0.05",
        "no_decay: 1 tensors, 4 values, lr 0.1, weight decay 0",
        "mask_head.*, decay: 1 tensors, 4 values, lr 0.2, weight decay 0.05",
        "mask_head.*, no_decay: 1 tensors, 1 values, lr 0.2, weight decay 0",
        "layer 2 of 3 (backbone.layer2), decay: 1 tensors, 16 values, lr 0.05, weight decay 0.05",
        "layer 2 of 3 (backbone.layer2), no_decay: 3 tensors, 12 values, lr 0.05, weight decay 0",
        "layer 0 of 3 (backbone.conv1), decay: 1 tensors, 108 values, lr 0.0125, weight decay 0.05",
        "layer 0 of 3 (backbone.conv1), no_decay: 2 tensors, 8 values, lr 0.0125, weight decay 0",
    ]


def test_a_step_goes_as_far_as_its_rate() -> None:
    """Plain SGD on a sum: every weight falls by exactly its rate."""
    model = Detector()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(
        model,
        name="sgd",
        lr=0.5,
        weight_decay=0.0,
        momentum=0.0,
        lr_factors=LrFactors(layer_decay=0.5, patterns={"box_head": 3.0}),
    )
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    moved = {name: (before[name] - p).mean().item() for name, p in model.named_parameters()}
    assert moved["backbone.conv1.weight"] == pytest.approx(0.0625, rel=1e-5)
    assert moved["backbone.layer1.0.weight"] == 0.0
    assert moved["backbone.layer2.1.bias"] == pytest.approx(0.25, rel=1e-5)
    assert moved["mask_head.bias"] == pytest.approx(0.5, rel=1e-5)
    assert moved["box_head.weight"] == pytest.approx(1.5, rel=1e-5)


def test_factors_that_fit_nothing() -> None:
    with pytest.raises(
        ValueError, match=r"'bakbone\.\*' matches no parameter .* near .* backbone,"
    ):
        rates(Detector(), LrFactors(patterns={"bakbone.*": 0.1}))
    with pytest.raises(ValueError, match=r"'xyz' .* its parts are .*mask_head"):
        rates(Detector(), LrFactors(patterns={"xyz": 0.1}))
    with pytest.raises(ValueError, match="no part named backbone or encoder; its parts are 0"):
        rates(nn.Sequential(nn.Linear(2, 2)), LrFactors(layer_decay=0.9))
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\], got 1.5"):
        LrFactors(layer_decay=1.5)
    with pytest.raises(ValueError, match="factor for 'head' must be positive: 0"):
        LrFactors(patterns={"head": 0.0})
