"""The layers of backbones of every make that there is in the house."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

from instseg.engine.layers import backbone_blocks, backbone_layers, backbone_name, layer_of
from instseg.engine.patterns import is_in
from instseg.models.backbones import ResNet


def under(name: str, backbone: nn.Module) -> nn.Module:
    """A model that has ``backbone`` at a dotted name, and a head."""
    for part in reversed(name.split(".")):
        backbone = nn.Sequential(OrderedDict([(part, backbone), (f"{part}_head", nn.Linear(2, 2))]))
    return backbone


def test_resnet() -> None:
    model = under("backbone", ResNet(18))
    stages = [[f"backbone.layer{i}"] for i in range(1, 5)]
    assert backbone_layers(model) == [["backbone.conv1", "backbone.bn1"], *stages]


@pytest.mark.parametrize(
    ("name", "stem", "stages"),
    [
        ("test_efficientnet", ["conv_stem", "bn1"], [f"blocks.{i}" for i in range(5)]),
        ("test_convnext", ["stem_0", "stem_1"], [f"stages_{i}" for i in range(4)]),
        (
            "test_vit",
            ["model.cls_token", "model.pos_embed", "model.patch_embed"],
            [f"model.blocks.{i}" for i in range(6)],
        ),
        ("test_resnet", ["conv1", "bn1"], [f"layer{i}" for i in range(1, 5)]),
    ],
)
def test_timm(name: str, stem: list[str], stages: list[str]) -> None:
    with torch.device("meta"):
        body = timm.create_model(name, features_only=True)
    model = under("network.encoder", nn.Sequential(OrderedDict(body=body)))
    prefix = "network.encoder.body."
    layers = backbone_layers(model)
    assert layers == [[prefix + s for s in stem], *([prefix + stage] for stage in stages)]
    # Every parameter of the backbone is in one layer, and no other is in any.
    for parameter, _ in model.named_parameters():
        owners = [i for i, parts in enumerate(layers) if any(is_in(parameter, p) for p in parts)]
        inside = parameter.startswith("network.encoder.")
        assert len(owners) == inside
        assert layer_of(parameter, layers) == (owners[0] if inside else None)


def test_bare_convolutions_are_cut_at_poolings() -> None:
    """As VGG's: two blocks of two and one convolutions."""
    row = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)]
    model = under("backbone", nn.Sequential(*row, nn.Conv2d(4, 4, 3), nn.ReLU()))
    assert backbone_layers(model) == [
        ["backbone.0", "backbone.2", "backbone.3"],
        ["backbone.5"],
    ]


def test_the_outermost_backbone_counts() -> None:
    model = under("network.encoder", under("backbone", nn.Linear(2, 2)))
    assert backbone_name(model) == "network.encoder"
    with pytest.raises(ValueError, match="no part named backbone or encoder; its parts are 0, 1"):
        backbone_name(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(ValueError, match="backbone has no parameters"):
        backbone_layers(under("backbone", nn.ReLU()))


@pytest.mark.parametrize(
    ("pattern", "inside"),
    [
        ("backbone", True),
        ("backbone.*", True),
        ("*.layer1", True),
        ("backbone.layer1.0.weight", True),
        ("*weight", True),
        ("backbone.layer", False),
        ("backbone.layer10", False),
        ("layer1", False),
        ("Backbone", False),
    ],
)
def test_patterns(pattern: str, inside: bool) -> None:
    assert is_in("backbone.layer1.0.weight", pattern) is inside


@pytest.mark.parametrize(
    ("name", "blocks", "first"),
    [
        ("test_resnet", 4, "layer1.0"),
        ("test_convnext", 9, "stages_0.blocks.0"),
        ("test_vit", 6, "model.blocks.0"),  # the wrapper never calls `model` as a whole
        ("test_efficientnet", 5, "blocks.0.0"),
    ],
)
def test_blocks_of_timm_are_called_as_a_whole(name: str, blocks: int, first: str) -> None:
    backbone = timm.create_model(name, features_only=True)
    model = under("backbone", backbone)
    names = backbone_blocks(model)
    assert names[0] == f"backbone.{first}"
    assert len(names) == blocks
    called = []
    for block in names:
        model.get_submodule(block).register_forward_hook(
            lambda *_, block=block: called.append(block)
        )
    backbone.eval()(torch.zeros(1, 3, 160, 160))
    assert called == names


def test_blocks_of_a_resnet_and_of_a_backbone_without_any() -> None:
    counts = [2, 2, 2, 2]
    assert backbone_blocks(under("backbone", ResNet(18))) == [
        f"backbone.layer{stage}.{block}"
        for stage, count in enumerate(counts, start=1)
        for block in range(count)
    ]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    assert backbone_blocks(under("encoder", plain)) == ["encoder.0", "encoder.2"]
