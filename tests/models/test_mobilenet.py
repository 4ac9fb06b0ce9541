from __future__ import annotations

import pytest
import torch
from torchvision.models import mobilenet_v3_large

from instseg.models.backbones.mobilenet import MobileNetV3Large


@pytest.mark.parametrize("reduced_tail", [False, True])
@torch.inference_mode()
def test_mobilenet_is_torchvisions(reduced_tail):
    theirs = mobilenet_v3_large(weights=None, reduced_tail=reduced_tail).eval()
    ours = MobileNetV3Large(reduced_tail=reduced_tail).eval()
    ours.load_classifier(theirs.state_dict())
    seen = []
    theirs.features[13].block[0].register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(2, 3, 70, 65)
    last = theirs.features(x)
    expansion, end = ours(x)
    assert torch.equal(expansion, seen[0])
    assert torch.equal(end, last)
    assert ours.channels == [expansion.shape[1], end.shape[1]]


def test_weights_of_another_tail_are_refused():
    full = mobilenet_v3_large(weights=None).state_dict()
    with pytest.raises(
        ValueError, match="not of a MobileNetV3-Large with a reduced tail: features"
    ):
        MobileNetV3Large().load_classifier(full)


def test_mobilenet_freezes_its_first_stages():
    model = MobileNetV3Large(freeze_at=2).train()
    frozen = {int(n.split(".")[1]) for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {0, 1, 2, 3}


def test_a_bad_freeze_at_is_named():
    with pytest.raises(ValueError, match=r"freeze_at must be in 0..6, got 7"):
        MobileNetV3Large(freeze_at=7)
