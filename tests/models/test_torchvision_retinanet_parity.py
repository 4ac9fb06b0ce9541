"""With one random state dict, instseg's and torchvision's RetinaNets agree."""

from __future__ import annotations

import pytest
import torch
import torchvision.models.detection as tv
from torch import Tensor, nn

from instseg.models.backbones import ResNet
from instseg.models.detection import retinanet
from instseg.models.foreign.torchvision_retinanet import (
    convert_retinanet_state_dict,
    select_retinanet_classes,
)
from instseg.structures import Instances

from .torchvision_reference import images, keep_size

NUM_CLASSES = 4
THRESHOLD = 0.3
MANY = 10**4
PAIRS = {
    "retinanet_resnet50_fpn": tv.retinanet_resnet50_fpn,
    "retinanet_resnet50_fpn_v2": tv.retinanet_resnet50_fpn_v2,
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
        elif isinstance(module, nn.GroupNorm):
            module.weight.data.copy_(torch.rand(256, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(256, generator=generator) * 0.1)
    for tower in (model.head.classification_head.conv, model.head.regression_head.conv):
        for layer in tower.modules():
            if isinstance(layer, nn.Conv2d):
                shape = layer.weight.shape
                layer.weight.data.copy_(torch.randn(shape, generator=generator) * 0.03)
    model.eval()
    with torch.inference_mode():
        features = model.backbone(torch.randn(1, 3, 128, 128, generator=generator)).values()
        head = model.head
        for layer, run, spread, mean in (
            (head.classification_head.cls_logits, head.classification_head, 1.2, -2.0),
            (head.regression_head.bbox_reg, head.regression_head, 0.3, 0.0),
        ):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
            layer.weight.mul_(spread / run(list(features)).std())
            layer.bias.fill_(mean)


@pytest.fixture(scope="module", params=list(PAIRS))
def pair(request):
    torch.manual_seed(7)
    theirs = PAIRS[request.param](
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES,
        score_thresh=THRESHOLD,
        # Theirs counts boxes that clipping left without area, ours never has such: so no limit.
        detections_per_img=MANY,
    )
    randomise(theirs, torch.Generator().manual_seed(3))
    ours = getattr(retinanet, request.param)(NUM_CLASSES, torchvision=True)
    ours.load_state_dict(convert_retinanet_state_dict(theirs.state_dict()))
    assert ours.head.max_detections == 300
    ours.head.score_threshold, ours.head.max_detections = THRESHOLD, MANY
    theirs.transform.resize = keep_size
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(
    "sizes", [[(128, 160)], [(97, 211)], [(160, 96), (131, 190)]], ids=["even", "odd", "batch"]
)
@torch.inference_mode()
def test_same_detections(pair, sizes):
    ours, theirs = pair
    batch = images(*sizes)
    got = ours(batch)
    wanted = theirs([i / 255 for i in batch])
    for detections, reference in zip(got, wanted, strict=True):
        boxes = reference["boxes"]
        large = ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(dim=1)
        assert 50 < len(detections) == large.sum() <= len(boxes)
        assert torch.equal(detections.labels, reference["labels"][large])
        assert len(detections.labels.unique()) > 1
        assert (detections.boxes - boxes[large]).abs().max() < 1e-3
        assert (detections.scores - reference["scores"][large]).abs().max() < 1e-5


def targets(*sizes: tuple[int, int], count: int = 5) -> list[Instances]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for height, width in sizes:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        side = 15 + torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + side], dim=1)
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        made.append(Instances((height, width), boxes, labels))
    return made


def test_same_losses(pair):
    """Of objects that reach 0.5 IoU with an anchor and others; of an image without any."""
    ours, theirs = pair
    sizes = [(128, 160), (160, 131), (97, 64)]
    batch = images(*sizes)
    wanted = [*targets(*sizes[:2]), Instances.empty(sizes[2])]
    theirs.train()
    # Live batch norm would make both depend on the batch; running figures do not.
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    reference = theirs(
        [i / 255 for i in batch], [{"boxes": t.boxes, "labels": t.labels} for t in wanted]
    )
    theirs.eval()
    losses = ours(batch, wanted)
    names = {"loss_classifier": "classification", "loss_box_reg": "bbox_regression"}
    assert set(losses) == set(names)
    for name, value in losses.items():
        assert value > 0
        assert value.item() == pytest.approx(reference[names[name]].item(), rel=1e-5), name


def old_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the published file of the first version: flat names, no batch norm counters."""
    old = {}
    for key, value in state.items():
        for blocks in ("inner_blocks", "layer_blocks"):
            for i in range(3):
                key = key.replace(f"fpn.{blocks}.{i}.0.", f"fpn.{blocks}.{i}.")
        for i in range(4):
            key = key.replace(f"_head.conv.{i}.0.", f"_head.conv.{2 * i}.")
        if not key.endswith("num_batches_tracked"):
            old[key] = value
    return old


def test_old_key_layout():
    """Torchvision itself reads both layouts as the same; so does the conversion."""
    with torch.device("meta"):
        new = tv.retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    tensors = {k: torch.zeros(v.shape) for k, v in new.items()}
    old = old_layout(tensors)
    assert len(set(old) - set(new)) == (6 + 8) * 2
    converted = convert_retinanet_state_dict(old)
    expected = convert_retinanet_state_dict(tensors)
    assert converted.keys() == expected.keys()
    assert all(v is expected[k] for k, v in converted.items() if "num_batches" not in k)


def test_every_key_goes_on_once():
    for name, builder in PAIRS.items():
        with torch.device("meta"):
            state = builder(weights=None, weights_backbone=None, num_classes=3).state_dict()
            ours = getattr(retinanet, name)(3).state_dict()
        converted = convert_retinanet_state_dict(state)
        assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
        assert len({id(v) for v in converted.values()}) == len(converted)


def test_the_epsilon_of_frozen_norms():
    """With epsilon 0 in theirs, the variance takes the difference from our 1e-5."""
    state = {"backbone.body.bn1.running_var": torch.tensor([1.0])}
    converted = convert_retinanet_state_dict(state, frozen_eps=0.0)
    assert converted["backbone.bn1.running_var"].item() == pytest.approx(1 - 1e-5, abs=1e-7)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.conv1.weight",
        "backbone.fpn.extra_blocks.p8.weight",
        "rpn.head.conv.weight",
        "head.classification_head.module_list.0.weight",
        "head.regression_head.conv.0.0",
    ],
)
def test_foreign_keys_are_refused(key):
    with pytest.raises(ValueError, match=f"'{key}' is not of torchvision's RetinaNet"):
        convert_retinanet_state_dict({key: torch.zeros(1)})


@torch.inference_mode()
def test_selected_classes_score_as_before(pair):
    """Other classes' scores go, in the order asked for; boxes stay."""
    ours, _ = pair
    name = "retinanet_resnet50_fpn_v2" if ours.head.box_loss == "giou" else "retinanet_resnet50_fpn"
    fewer = getattr(retinanet, name)(2, torchvision=True).eval()
    fewer.load_state_dict(select_retinanet_classes(ours.state_dict(), [3, 1]))
    batch = ours.preprocess(images((64, 64)))
    outputs = [m.head(batch, m.neck(m.backbone(batch.tensor))) for m in (ours, fewer)]
    for all_logits, logits in zip(outputs[0].logits, outputs[1].logits, strict=True):
        torch.testing.assert_close(logits, all_logits[..., [3, 1]], rtol=1e-4, atol=1e-5)
    for all_offsets, offsets in zip(outputs[0].offsets, outputs[1].offsets, strict=True):
        torch.testing.assert_close(offsets, all_offsets)


def test_selecting_a_class_that_is_not_there():
    state = {
        "head.convs.logits.weight": torch.zeros(9 * 5, 2, 3, 3),
        "head.convs.logits.bias": torch.zeros(9 * 5),
        "head.convs.offsets.bias": torch.zeros(9 * 4),
    }
    with pytest.raises(ValueError, match="there are 5 classes, no class index 5"):
        select_retinanet_classes(state, [0, 5])


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("retinanet_resnet50_fpn", tv.RetinaNet_ResNet50_FPN_Weights.COCO_V1),
        ("retinanet_resnet50_fpn_v2", tv.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1),
    ],
)
def test_published_parameter_counts(name, weights):
    """Frozen batch norm's weights and biases are parameters here, and not in their figure."""
    with torch.device("meta"):
        model = getattr(retinanet, name)(91)
    count = sum(p.numel() for p in model.parameters())
    if name == "retinanet_resnet50_fpn":
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        count -= sum(2 * m.num_features for m in norms)
    assert isinstance(model.backbone, ResNet)
    assert count == weights.meta["num_params"]
