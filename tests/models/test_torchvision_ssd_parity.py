"""With one random state dict, instseg's and torchvision's SSDs agree: detections and losses."""

from __future__ import annotations

import pytest
import torch
import torchvision.models.detection as tv
from torch import Tensor, nn

from instseg.models.detection import ssd
from instseg.models.foreign.torchvision_ssd import (
    convert_torchvision_ssd_state_dict,
    select_classes,
)
from instseg.structures import Instances

from .torchvision_reference import images, keep_size

NUM_CLASSES = 4
THRESHOLD = 0.45
SIZES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
PARAMETERS = {"ssd300_vgg16": 35641826, "ssdlite320_mobilenet_v3_large": 3440060}


def pictures(size: int) -> list[Tensor]:
    """Two on which no box is kept for a score that is greater by rounding alone."""
    return images((size, size), (size, size), seed=size)


def randomise(model: nn.Module, size: int) -> None:
    """Batch norm figures that are not trivial; logits of deviation 1.5 and offsets of 0.5."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = len(module.running_var)
            module.running_mean.copy_(torch.randn(n, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(n, generator=generator) * 0.01 + 0.005)
            module.weight.data.copy_(torch.rand(n, generator=generator) * 0.5 + 0.5)
            module.bias.data.copy_(torch.randn(n, generator=generator) * 0.1)
    batch, _ = model.eval().transform([i / 255 for i in pictures(size)])
    with torch.no_grad():
        features = list(model.backbone(batch.tensors).values())
        heads = (model.head.classification_head, 1.5), (model.head.regression_head, 0.5)
        for head, deviation in heads:
            for layer, feature in zip(head.module_list, features, strict=True):
                last = layer if isinstance(layer, nn.Conv2d) else layer[-1]
                last.weight.mul_(deviation / layer(feature).std())


def make_pair(name: str) -> tuple[nn.Module, nn.Module, int]:
    torch.manual_seed(7)
    theirs = getattr(tv, name)(
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES + 1,
        score_thresh=THRESHOLD,
    )
    theirs.transform.resize = keep_size
    size = SIZES[name]
    randomise(theirs, size)
    ours = getattr(ssd, name)(NUM_CLASSES)
    ours.load_state_dict(convert_torchvision_ssd_state_dict(theirs.state_dict()))
    ours.head.score_threshold = THRESHOLD
    return ours.eval(), theirs.eval(), size


@pytest.fixture(scope="module")
def lite():
    return make_pair("ssdlite320_mobilenet_v3_large")


@pytest.fixture(scope="module", params=list(SIZES))
def pair(request):
    if request.param == "ssdlite320_mobilenet_v3_large":
        return request.getfixturevalue("lite")
    return make_pair(request.param)


@torch.inference_mode()
def test_same_detections(pair):
    ours, theirs, size = pair
    batch = pictures(size)
    wanted = theirs([i / 255 for i in batch])
    for detections, reference in zip(ours(batch), wanted, strict=True):
        assert len(detections) == len(reference["boxes"]) > 100
        assert set(detections.labels.tolist()) == set(range(NUM_CLASSES))
        assert torch.equal(detections.labels + 1, reference["labels"])
        assert (detections.boxes - reference["boxes"]).abs().max() < 1e-3
        assert (detections.scores - reference["scores"]).abs().max() < 1e-5


@torch.inference_mode()
def test_same_detections_where_the_limits_bind(lite):
    """Two candidates of each class go in, and three detections come out."""
    ours, theirs, size = lite
    kept = ours.head.max_candidates, ours.head.max_detections
    ours.head.max_candidates, ours.head.max_detections = 2, 3
    theirs.topk_candidates, theirs.detections_per_img = 2, 3
    batch = pictures(size)
    wanted = theirs([i / 255 for i in batch])
    for detections, reference in zip(ours(batch), wanted, strict=True):
        assert len(detections) == 3
        assert torch.equal(detections.labels + 1, reference["labels"])
        assert (detections.boxes - reference["boxes"]).abs().max() < 1e-3
    ours.head.max_candidates, ours.head.max_detections = kept
    theirs.topk_candidates, theirs.detections_per_img = kept


def objects(size: int, count: int, seed: int) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.6
    side = 15 + torch.rand(count, 2, generator=generator) * size * 0.35
    labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    return Instances((size, size), torch.cat([corner, corner + side], dim=1), labels)


@torch.no_grad()
def test_same_losses(pair):
    compare_losses(pair, counts=(6, 3))


@pytest.mark.parametrize("counts", [(5, 0), (0, 0), (60, 1)])
@torch.no_grad()
def test_same_losses_with_few_and_many_objects(lite, counts):
    compare_losses(lite, counts)


def compare_losses(pair, counts: tuple[int, int]) -> None:
    """In training mode: batch norm takes the figures of the batch, and its running ones move."""
    ours, theirs, size = pair
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    batch = pictures(size)
    wanted = [objects(size, n, seed) for seed, n in enumerate(counts)]
    reference = theirs.train()(
        [i / 255 for i in batch], [{"boxes": t.boxes, "labels": t.labels + 1} for t in wanted]
    )
    losses = ours.train()(batch, wanted)
    pairs = {"loss_classifier": "classification", "loss_box_reg": "bbox_regression"}
    assert losses.keys() == pairs.keys()
    for name, theirs_name in pairs.items():
        assert (reference[theirs_name] > 0) == (sum(counts) > 0)
        assert losses[name].item() == pytest.approx(reference[theirs_name].item(), rel=1e-5)
    after = convert_torchvision_ssd_state_dict(theirs.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.allclose(value.float(), after[name].float(), rtol=1e-5, atol=1e-7), name
    theirs.eval().load_state_dict(before)
    ours.eval().load_state_dict(convert_torchvision_ssd_state_dict(before))


@torch.inference_mode()
def test_selected_classes_keep_their_logits(pair):
    ours, _, size = pair
    batch = ours.preprocess(images((size, size))).tensor
    features = ours.neck(ours.backbone(batch))
    logits, offsets = ours.head.predictor(features)
    name = "ssd300_vgg16" if size == 300 else "ssdlite320_mobilenet_v3_large"
    fewer = getattr(ssd, name)(2)
    fewer.load_state_dict(select_classes(ours.state_dict(), [3, 1]))
    got, same_offsets = fewer.eval().head.predictor(features)
    assert torch.allclose(got, logits[..., [0, 4, 2]], atol=1e-5)
    assert torch.equal(same_offsets, offsets)


def test_classes_that_are_not_there_are_refused(pair):
    with pytest.raises(ValueError, match="there are 4 classes, no class index 4"):
        select_classes(pair[0].state_dict(), [0, 4])


@pytest.mark.parametrize("name", list(SIZES))
def test_parameters_are_as_published(name):
    """Torchvision's count for its COCO weights, of 91 classes with the background."""
    model = getattr(ssd, name)(90)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    "state_dict",
    [
        {"backbone.body.conv1.weight": torch.zeros(1)},
        {"backbone.scale_weight": torch.zeros(1), "backbone.extra.0.8.weight": torch.zeros(1)},
        {"backbone.scale_weight": torch.zeros(1), "backbone.extra.5.0.weight": torch.zeros(1)},
        {"head.classification_head.conv.0.0.weight": torch.zeros(1)},
    ],
)
def test_foreign_keys_are_refused(state_dict):
    key = list(state_dict)[-1]
    with pytest.raises(ValueError, match=rf"'{key}' is not of torchvision's ssd300_vgg16"):
        convert_torchvision_ssd_state_dict(state_dict)
