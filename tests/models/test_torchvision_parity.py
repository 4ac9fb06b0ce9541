"""With one random state dict, instseg's and torchvision's R-CNNs agree: detections and losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.models.detection as tv
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from instseg.models import detection
from instseg.models.foreign.torchvision_rcnn import convert_torchvision_state_dict
from instseg.ops import instance_rles, rle
from instseg.structures import BitMasks, Instances, RoIMasks

from .torchvision_reference import images, keep_size

NUM_CLASSES = 4
PAIRS = {
    "faster_rcnn_resnet50_fpn": tv.fasterrcnn_resnet50_fpn,
    "faster_rcnn_resnet50_fpn_v2": tv.fasterrcnn_resnet50_fpn_v2,
    "mask_rcnn_resnet50_fpn": tv.maskrcnn_resnet50_fpn,
    "mask_rcnn_resnet50_fpn_v2": tv.maskrcnn_resnet50_fpn_v2,
}


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that give confident, varied outputs, and batch norm figures that are not trivial."""
    for module in model.modules():
        if hasattr(module, "running_var"):
            n = len(module.running_var)
            module.running_mean.copy_(torch.randn(n, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(n, generator=generator) * 0.5 + 0.5)
            module.bias.data.copy_(torch.randn(n, generator=generator) * 0.1)
    heads = model.roi_heads.box_predictor
    for layer, std in ((heads.cls_score, 0.05), (heads.bbox_pred, 0.02)):
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
    rpn = model.rpn.head
    for layer, std in ((rpn.cls_logits, 0.05), (rpn.bbox_pred, 0.02)):
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * std)


@pytest.fixture(scope="module", params=list(PAIRS))
def pair(request):
    torch.manual_seed(7)
    theirs = PAIRS[request.param](
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, box_score_thresh=0.22
    )
    randomise(theirs, torch.Generator().manual_seed(3))
    ours = getattr(detection, request.param)(NUM_CLASSES, torchvision=True)
    ours.load_state_dict(convert_torchvision_state_dict(theirs.state_dict()))
    ours.box_head.score_threshold = 0.22
    theirs.transform.resize = keep_size
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(
    "sizes", [[(128, 160)], [(97, 211)], [(160, 96), (130, 190)]], ids=["even", "odd", "batch"]
)
@torch.inference_mode()
def test_same_detections(pair, sizes):
    ours, theirs = pair
    batch = images(*sizes)
    got = ours(batch)
    wanted = theirs([i / 255 for i in batch])
    for detections, reference, size in zip(got, wanted, sizes, strict=True):
        assert len(detections) == len(reference["boxes"]) > 0
        assert torch.equal(detections.labels + 1, reference["labels"])
        assert (detections.boxes - reference["boxes"]).abs().max() < 1e-3
        assert (detections.scores - reference["scores"]).abs().max() < 1e-5
        if "masks" in reference:
            assert isinstance(detections.masks, RoIMasks)
            pasted = np.stack([rle.decode(code) for code in instance_rles(detections)])
            expected = (reference["masks"][:, 0] > 0.5).numpy()
            assert 0.01 < expected.mean() < 0.99
            assert (pasted != expected).mean() < 1e-4
            assert pasted.shape[1:] == size


def targets(*sizes: tuple[int, int]) -> list[Instances]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for height, width in sizes:
        corner = torch.rand(5, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        side = 15 + torch.rand(5, 2, generator=generator) * 40
        made.append(
            Instances(
                (height, width),
                torch.cat([corner, corner + side], dim=1),
                torch.randint(0, NUM_CLASSES, (5,), generator=generator),
                masks=BitMasks(torch.rand(5, height, width, generator=generator) > 0.5),
            )
        )
    return made


def test_same_losses(pair):
    """Both draw every positive and negative, so that the samples are the same sets."""
    ours, theirs = pair
    sizes = [(128, 160), (160, 130)]
    batch, wanted = images(*sizes), targets(*sizes)
    everything = 10**6
    for model in (theirs.rpn, theirs.roi_heads):
        model.fg_bg_sampler.batch_size_per_image = everything
    for part in (ours.rpn, ours.box_head):
        part.sampler = type(part.sampler)(everything, part.sampler.positive_fraction)
    theirs.train()
    # Live batch norm would make both depend on the order of RoIs; running figures do not.
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    reference = theirs(
        [i / 255 for i in batch],
        [
            {"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks.tensor.to(torch.uint8)}
            for t in wanted
        ],
    )
    theirs.eval()
    losses = ours(batch, wanted)
    assert set(losses) == set(reference)
    for name, value in reference.items():
        assert value > 0
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_old_key_layout():
    """The published files of the first versions have flat names; both layouts convert alike."""
    theirs = tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    new = theirs.state_dict()
    old = {}
    for key, value in new.items():
        key = key.replace("roi_heads.mask_head.0.0", "roi_heads.mask_head.mask_fcn1")
        for i in range(1, 4):
            key = key.replace(f"roi_heads.mask_head.{i}.0", f"roi_heads.mask_head.mask_fcn{i + 1}")
        for blocks in ("inner_blocks", "layer_blocks"):
            for i in range(4):
                key = key.replace(f"fpn.{blocks}.{i}.0.", f"fpn.{blocks}.{i}.")
        old[key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    assert set(old) != set(new)
    converted = convert_torchvision_state_dict(old)
    assert converted.keys() == convert_torchvision_state_dict(new).keys()
    detection.mask_rcnn_resnet50_fpn(2).load_state_dict(converted)


def test_foreign_keys_are_refused():
    with pytest.raises(ValueError, match=r"'backbone.stages.0'.*not of torchvision"):
        convert_torchvision_state_dict({"backbone.stages.0": torch.zeros(1)})


def test_pasting_rule_is_torchvisions():
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(20, 28, 28, generator=generator)
    corner = torch.rand(20, 2, generator=generator) * 80 - 10
    boxes = torch.cat([corner, corner + torch.rand(20, 2, generator=generator) * 60], dim=1)
    expected = paste_masks_in_image(probs[:, None], boxes, (90, 100))[:, 0] > 0.5
    got = instance_rles(
        Instances(
            (90, 100),
            boxes,
            torch.zeros(20, dtype=torch.int64),
            masks=RoIMasks(probs, aligned=False),
        )
    )
    assert torch.equal(torch.from_numpy(np.stack([rle.decode(c) for c in got])).bool(), expected)
