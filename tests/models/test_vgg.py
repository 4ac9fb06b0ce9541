from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg

from instseg.models.backbones.vgg import SSDVGG, VGG


@pytest.mark.parametrize(
    ("depth", "batch_norm"), [(11, False), (13, True), (16, True), (19, False)]
)
@torch.inference_mode()
def test_vgg_is_torchvisions(depth, batch_norm):
    """Its configurations A to E: the maps before each pool, and the last pool's."""
    letter = {11: "A", 13: "B", 16: "D", 19: "E"}[depth]
    plan = [c if c == "M" else c // 16 for c in vgg.cfgs[letter]]
    theirs = nn.ModuleDict({"features": vgg.make_layers(plan, batch_norm=batch_norm)}).eval()
    ours = VGG(depth, batch_norm=batch_norm, width=4).eval()
    ours.load_classifier({**theirs.state_dict(), "classifier.0.bias": torch.zeros(2)})
    x = torch.randn(1, 3, 70, 65)
    expected, y = [], x
    for layer in theirs["features"]:
        if isinstance(layer, nn.MaxPool2d):
            expected.append(y)
        y = layer(y)
    for got, wanted in zip(ours(x), [*expected, y], strict=True):
        assert torch.equal(got, wanted)
    assert [f.shape[1] for f in ours(x)] == ours.channels
    assert [f.shape[2] for f in ours(x)] == [70 // s for s in ours.strides]


def test_vgg_freezes_its_first_stages():
    model = VGG(11, batch_norm=True, width=4, freeze_at=2).train()
    frozen = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "1", "4", "5"}
    assert not model.features[5].training
    assert model.features[9].training


@torch.inference_mode()
def test_ssd_vgg_starts_from_the_classifier():
    """fc6 looks at every third pixel of the 7x7 ones, over four times as many outputs."""
    backbone = SSDVGG(width=2)
    features = {k: torch.randn_like(v) for k, v in VGG(16, width=2).state_dict().items()}
    weights = {
        **features,
        "classifier.0.weight": torch.randn(128, 16 * 49),
        "classifier.0.bias": torch.randn(128),
        "classifier.3.weight": torch.randn(128, 128),
        "classifier.3.bias": torch.randn(128),
    }
    backbone.load_classifier(weights)
    full = weights["classifier.0.weight"].view(128, 16, 7, 7)
    assert backbone.fc6.weight[5, 3, 2, 1] == full[20, 3, 6, 3]
    assert backbone.fc6.bias[5] == weights["classifier.0.bias"][20]
    assert backbone.fc7.weight[5, 7, 0, 0] == weights["classifier.3.weight"][20, 28]
    # At the middle of a 13 x 13 map, the dilated kernel sees what a 7x7 one of stride 2 sees.
    x = torch.randn(1, 16, 13, 13)
    seen = torch.zeros(128, 16, 13, 13)
    seen[:, :, ::6, ::6] = full[:, :, ::3, ::3]
    expected = F.conv2d(x, seen, weights["classifier.0.bias"])[0, ::4, 0, 0]
    assert torch.allclose(backbone.fc6(x)[0, :, 6, 6], expected, atol=1e-4)


@pytest.mark.parametrize("classifier", [{}, {"weight": torch.full((128, 784), torch.nan)}])
def test_ssd_vgg_without_a_classifier_keeps_its_own_fc(classifier):
    """Torchvision's ``IMAGENET1K_FEATURES`` has NaN there."""
    backbone = SSDVGG(width=2)
    weights = VGG(16, width=2).state_dict()
    weights |= {f"classifier.{i}.{k}": v for i in (0, 3) for k, v in classifier.items()}
    before = backbone.fc6.weight.clone(), backbone.fc7.weight.clone()
    backbone.load_classifier(weights)
    assert torch.equal(backbone.features[0].weight, weights["features.0.weight"])
    assert torch.equal(backbone.fc6.weight, before[0])
    assert torch.equal(backbone.fc7.weight, before[1])


def test_weights_of_another_vgg_are_refused():
    with pytest.raises(ValueError, match="not of a VGG-16: no key features"):
        SSDVGG(width=2).load_classifier(VGG(13, width=2).state_dict())
    weights = VGG(16, width=2).state_dict()
    weights["classifier.0.weight"] = torch.zeros(128, 16 * 49)
    weights["classifier.0.bias"] = torch.zeros(128)
    weights["classifier.3.weight"] = torch.zeros(100, 100)
    weights["classifier.3.bias"] = torch.zeros(100)
    with pytest.raises(ValueError, match="not of SSD's VGG-16, by their classifier: fc7"):
        SSDVGG(width=2).load_classifier(weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG(12), r"depth must be one of \[11, 13, 16, 19\], got 12"),
        (lambda: VGG(16, freeze_at=6), r"freeze_at must be in 0..5, got 6"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
