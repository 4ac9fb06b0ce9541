from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from instseg.losses.retinanet import BACKGROUND, IGNORED
from instseg.models.backbones import ResNet
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.detection.prototype_masks import PrototypeMasks
from instseg.models.detection.retinanet import (
    RetinaNetHead,
    RetinaNetOutput,
    retinanet_anchors,
    retinanet_resnet50_fpn_seg,
)
from instseg.models.heads.retinanet import RetinaNetConvs
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess
from instseg.structures import BitMasks, ImageBatch, Instances, RoIMasks
from tests.contracts.reference import iou

NUM_CLASSES = 3
GROUPS = partial(nn.GroupNorm, 4)


def small_head(strides=(8, 16), *, prototypes: int = 0, **options) -> RetinaNetHead:
    anchors = retinanet_anchors(strides)
    convs = RetinaNetConvs(
        16, anchors.num_anchors, NUM_CLASSES, depth=1, norm=GROUPS, num_prototypes=prototypes
    )
    masks = (
        PrototypeMasks(16, num_prototypes=prototypes, channels=8, mask_size=14)
        if prototypes
        else None
    )
    return RetinaNetHead(anchors, convs, masks=masks, **options)


def small_model(*, prototypes: int = 0, **options) -> OneStageDetector:
    backbone = ResNet(18, norm="live", freeze_at=0)
    neck = FPN(backbone.channels, backbone.strides, 16, extra="conv_c5", min_stride=8)
    head = small_head(neck.strides, prototypes=prototypes, **options)
    return OneStageDetector(Preprocess(), backbone, neck, head)


def image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def objects(size: tuple[int, int], *boxes: list[float], crowd=None, masks=True) -> Instances:
    count = len(boxes)
    return Instances(
        size,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(count) % NUM_CLASSES,
        masks=BitMasks(torch.ones(count, *size, dtype=torch.bool)) if masks else None,
        is_crowd=None if crowd is None else torch.tensor(crowd, dtype=torch.bool),
    )


class TestConvs:
    @torch.no_grad()
    def test_outputs_stand_in_the_order_of_the_anchors(self):
        """Channel a * width + i of pixel (y, x) is figure i of anchor (y * W + x) * A + a."""
        convs = RetinaNetConvs(4, 2, NUM_CLASSES, depth=0, num_prototypes=5)
        feature = torch.randn(2, 4, 3, 5)
        results = convs([feature, feature[..., :2]])
        layers = (convs.logits, convs.offsets, convs.coefficients)
        for levels, layer, width in zip(results, layers, (NUM_CLASSES, 4, 5), strict=True):
            assert [tuple(level.shape) for level in levels] == [(2, 30, width), (2, 12, width)]
            maps = layer(feature)
            for b, y, x, a in ((0, 0, 0, 0), (1, 2, 3, 1), (0, 1, 4, 0), (1, 1, 0, 1)):
                wanted = maps[b, a * width : (a + 1) * width, y, x]
                torch.testing.assert_close(levels[0][b, (y * 5 + x) * 2 + a], wanted)

    def test_initial_weights(self):
        """N(0, 0.01^2); each class starts at probability 0.01, as section 4.1 has it."""
        convs = RetinaNetConvs(64, 9, NUM_CLASSES)
        layers = [m for m in convs.modules() if isinstance(m, nn.Conv2d)]
        assert len(layers) == 10
        for layer in layers:
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
            if layer is not convs.logits:
                assert not layer.bias.any()
        assert convs.logits.bias.sigmoid().tolist() == pytest.approx([0.01] * 27)

    def test_towers_are_apart_and_coefficients_share_that_of_the_boxes(self):
        for output, tower in ((0, "classification"), (1, "regression"), (2, "regression")):
            convs = RetinaNetConvs(8, 2, NUM_CLASSES, num_prototypes=4)
            convs([torch.randn(1, 8, 4, 4)])[output][0].sum().backward()
            reached = {n.split(".")[0] for n, p in convs.named_parameters() if p.grad is not None}
            assert reached == {tower, ("logits", "offsets", "coefficients")[output]}

    def test_norms(self):
        convs = RetinaNetConvs(8, 2, NUM_CLASSES, norm=GROUPS)
        assert [type(m) for m in convs.classification[3]] == [nn.Conv2d, nn.GroupNorm, nn.ReLU]
        assert convs.regression[0][0].bias is None
        plain = RetinaNetConvs(8, 2, NUM_CLASSES)
        assert [type(m) for m in plain.regression[0]] == [nn.Conv2d, nn.ReLU]
        assert plain([torch.randn(1, 8, 4, 4)])[2] == []

    def test_traced_whole(self):
        """No step depends on values: with the neck, one graph."""
        model = small_model(prototypes=4).eval()

        def run(x: Tensor) -> list[Tensor]:
            features = model.neck(model.backbone(x))
            return [t for levels in model.head.convs(features) for t in levels]

        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            got = torch.compile(run, backend="eager", fullgraph=True)(x)
            for a, b in zip(got, run(x), strict=True):
                torch.testing.assert_close(a, b)


def test_anchors_hand_worked():
    """On P3: 32 times 1, 2^(1/3), 2^(2/3), of height / width 1/2, 1, 2, ratios outermost."""
    anchors = retinanet_anchors([8, 16])
    assert anchors.num_anchors == 9
    first, second = anchors([(2, 2), (1, 1)], (16, 16))
    sizes = [32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
    shapes = [(s * math.sqrt(r), s / math.sqrt(r)) for r in (0.5, 1, 2) for s in sizes]
    expected = [(-w / 2, -h / 2, w / 2, h / 2) for h, w in shapes]
    torch.testing.assert_close(first[:9], torch.tensor(expected))
    torch.testing.assert_close(first[9:18], torch.tensor(expected) + torch.tensor([8.0, 0, 8, 0]))
    torch.testing.assert_close(second, torch.tensor(expected) * 2)
    theirs = retinanet_anchors([8, 16, 32, 64, 128], torchvision=True)
    widths = theirs([(1, 1)] * 5, (128, 128))[4][3:6, 2] * 2
    assert widths.tolist() == [512.0, 644.0, 812.0]  # 645 / 2 is rounded to even, to 322


def assign_loops(anchors: list, target: Instances) -> tuple[list[int], list[int]]:
    """Section 4, "Anchors", with each object's best anchors; crowds as regions to leave alone."""
    crowd = target.crowd.tolist()
    gt = target.boxes.double().tolist()
    overlaps = [[iou(a, g) for g in gt] for a in anchors]
    labels, matched = [], []
    for anchor, row in zip(anchors, overlaps, strict=True):
        own = {o: v for o, v in enumerate(row) if not crowd[o]}
        best = max(own, key=lambda o: own[o], default=None)
        value = 0.0 if best is None else own[best]
        is_top = any(v > 0 and v == max(r[o] for r in overlaps) for o, v in own.items())
        label = BACKGROUND
        if value >= 0.5 or is_top:
            label = int(target.labels[best])
        elif value >= 0.4 or any(crowd[o] and inside(anchor, g) >= 0.5 for o, g in enumerate(gt)):
            label = IGNORED
        labels.append(label)
        matched.append(best)
    return labels, matched


def inside(box: list[float], region: list[float]) -> float:
    width = max(min(box[2], region[2]) - max(box[0], region[0]), 0)
    height = max(min(box[3], region[3]) - max(box[1], region[1]), 0)
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))


class TestAssign:
    def test_hand_worked(self):
        """IoU 1, 0.5, 0.45 and 0.3 with object 1; object 2 is touched by one anchor alone."""
        anchors = torch.tensor(
            [
                [0.0, 0, 10, 10],
                [0, 0, 10, 5],
                [0, 0, 10, 4.5],
                [0, 0, 10, 3],
                [49, 49, 59, 59],
                [80, 80, 90, 90],
            ]
        )
        target = Instances(
            (100, 100),
            torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]]),
            torch.tensor([2, 1]),
        )
        labels, matched = small_head().assign(anchors, [target, Instances.empty((100, 100))])
        assert labels[0].tolist() == [2, 2, IGNORED, BACKGROUND, 1, BACKGROUND]
        assert matched[0, [0, 1, 4]].tolist() == [0, 0, 1]
        assert labels[1].tolist() == [BACKGROUND] * 6
        assert labels.dtype == matched.dtype == torch.int64

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_equal_to_the_definition(self, seed):
        """Random objects, two of five a crowd, on real anchors."""
        head = small_head()
        anchors = torch.cat(head.anchors([(8, 10), (4, 5)], (64, 80)))
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(5, 2, generator=generator) * 40
        side = 8 + torch.rand(5, 2, generator=generator) * 50
        crowd = [False, True, False, False, True]
        target = objects((64, 80), *torch.cat([corner, corner + side], 1).tolist(), crowd=crowd)
        labels, matched = head.assign(anchors, [target])
        expected, best = assign_loops(anchors.double().tolist(), target)
        assert labels[0].tolist() == expected
        assert {BACKGROUND, IGNORED} < set(expected)
        positive = labels[0] >= 0
        assert matched[0][positive].tolist() == torch.tensor(best)[positive].tolist()

    def test_anchors_mostly_in_a_crowd_are_ignored(self):
        anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10], [0, 0, 21, 10]])
        target = objects((50, 50), [0, 0, 10, 10], crowd=[True])
        labels, _ = small_head().assign(anchors, [target])
        assert labels[0].tolist() == [IGNORED, IGNORED, BACKGROUND]


def candidates_loops(output: RetinaNetOutput, limit: int, threshold: float) -> list[tuple]:
    """All pairs of a level sorted by score, the first `limit` of them that score enough."""
    found = []
    for b in range(len(output.logits[0])):
        start = 0
        for anchors, logits, offsets in zip(
            output.anchors, output.logits, output.offsets, strict=True
        ):
            scores = 1 / (1 + (-logits[b].double()).exp())
            pairs = [
                (float(scores[a, c]), a, c)
                for a in range(scores.shape[0])
                for c in range(scores.shape[1])
            ]
            for score, a, c in sorted(pairs, reverse=True)[:limit]:
                if score > threshold:
                    x1, y1, x2, y2 = anchors[a].double().tolist()
                    dx, dy, dw, dh = offsets[b, a].double().tolist()
                    w, h = x2 - x1, y2 - y1
                    x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
                    w, h = w * math.exp(dw) / 2, h * math.exp(dh) / 2
                    found.append((b, start + a, c, score, [x - w, y - h, x + w, y + h]))
            start += len(anchors)
    return sorted(found)


@pytest.mark.parametrize(("limit", "threshold"), [(1000, 0.5), (7, 0.0), (20, 0.9)])
def test_candidates_are_equal_to_the_definition(limit, threshold):
    head = small_head(before_nms=limit, score_threshold=threshold)
    anchors = head.anchors([(2, 3), (1, 2)], (16, 24))
    output = RetinaNetOutput(
        anchors,
        [torch.randn(2, len(a), NUM_CLASSES) * 2 for a in anchors],
        [torch.randn(2, len(a), 4) * 0.5 for a in anchors],
        [],
    )
    expected = candidates_loops(output, limit, threshold)
    c = head._candidates(output)
    got = sorted(
        zip(
            c.image.tolist(),
            c.source.tolist(),
            c.labels.tolist(),
            c.scores.tolist(),
            c.boxes.tolist(),
            strict=True,
        )
    )
    assert len(got) == len(expected) > 5
    assert [g[:3] for g in got] == [e[:3] for e in expected]
    for g, e in zip(got, expected, strict=True):
        assert g[3] == pytest.approx(e[3], abs=1e-6)
        assert g[4] == pytest.approx(e[4], abs=1e-3)


def every_gradient(model: nn.Module, losses: dict[str, Tensor]) -> None:
    assert all(v.shape == () and v.dtype == torch.float32 for v in losses.values())
    assert all(v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_losses(box_loss):
    model = small_model(prototypes=4, box_loss=box_loss).train()
    sizes = [(64, 96), (75, 50)]
    targets = [objects(s, [8, 8, 40, 40], [20, 10, 45, 60]) for s in sizes]
    losses = model([image(*s) for s in sizes], targets)
    assert list(losses) == ["loss_classifier", "loss_box_reg", "loss_mask"]
    assert all(v > 0 for v in losses.values())
    every_gradient(model, losses)


@pytest.mark.parametrize("crowd", [False, True], ids=["empty", "only crowd"])
def test_images_without_objects(crowd):
    model = small_model(prototypes=4, box_loss="giou").train()
    size = (64, 64)
    target = objects(size, [8, 8, 40, 40], crowd=[True]) if crowd else Instances.empty(size)
    losses = model([image(*size)], [target])
    assert losses["loss_classifier"] > 0
    assert losses["loss_box_reg"] == losses["loss_mask"] == 0
    every_gradient(model, losses)


def test_a_crowd_over_all_leaves_nothing_to_learn():
    model = small_model().train()
    size = (64, 64)
    target = objects(size, [-2000.0, -2000, 2000, 2000], crowd=[True])
    assert model([image(*size)], [target])["loss_classifier"] == 0


def test_thousands_of_objects():
    """Of no area, alike, and outside the image too."""
    model = small_model().train()
    corner = torch.rand(3000, 2) * 70
    boxes = torch.cat([corner, corner + torch.rand(3000, 2) * 30], dim=1)
    boxes[:100, 2:] = boxes[:100, :2]
    boxes[100:200] = boxes[200]
    boxes[300:400] += 500
    target = Instances((64, 64), boxes, torch.zeros(3000, dtype=torch.int64))
    every_gradient(model, model([image(64, 64)], [target]))


def test_masks_need_masks():
    model = small_model(prototypes=4).train()
    target = objects((64, 64), [8, 8, 40, 40], masks=False)
    with pytest.raises(ValueError, match="need targets with SparseMasks or BitMasks"):
        model([image(64, 64)], [target])


@pytest.mark.parametrize("size", [(64, 64), (33, 97), (1, 5)])
@torch.inference_mode()
def test_detections(size):
    model = small_model(prototypes=4, score_threshold=0.0, max_detections=20).eval()
    nn.init.normal_(model.head.convs.logits.weight, std=0.5)
    (found,) = model([image(*size)])
    assert 0 < len(found) <= 20
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.labels.min() >= 0
    assert found.labels.max() < NUM_CLASSES
    assert found.boxes.min() >= 0
    assert (found.boxes <= torch.tensor([size[1], size[0]] * 2)).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert isinstance(found.masks, RoIMasks)
    assert found.masks.probs.shape == (len(found), 14, 14)


@torch.inference_mode()
def test_nothing_found():
    model = small_model(prototypes=4, score_threshold=1.0).eval()
    found = model([image(64, 64), image(40, 30)])
    assert [len(f) for f in found] == [0, 0]
    assert all(f.masks.probs.shape == (0, 14, 14) for f in found)


@torch.inference_mode()
def test_coefficients_follow_their_detections():
    """Each detection's mask is made of the coefficients of the anchor that it is from."""
    head = small_head((8, 16), prototypes=2, score_threshold=0.5)
    features = [torch.rand(2, 16, 4, 4), torch.rand(2, 16, 2, 2)]
    output = head(ImageBatch(torch.zeros(2, 3, 32, 32), [(32, 32)] * 2), features)
    for level in output.logits:
        level.fill_(-9.0)
    output.logits[0][0, 75, 1] = output.logits[1][0, 20, 2] = output.logits[0][1, 30, 0] = 9.0
    output.logits[1][0, 20, 2] = 8.0
    head.forward = lambda batch, features: output
    given = []
    head.masks.predict = lambda p, stride, chosen, found: given.extend([stride, *chosen]) or found
    first, second = head.detect(ImageBatch(torch.zeros(2, 3, 32, 32), [(32, 32)] * 2), features)
    assert [first.labels.tolist(), second.labels.tolist()] == [[1, 2], [0]]
    assert given[0] == 8
    levels = output.coefficients
    assert torch.equal(given[1], torch.stack([levels[0][0, 75], levels[1][0, 20]]))
    assert torch.equal(given[2], levels[0][1, 30:31])


def test_bfloat16_autocast():
    model = small_model(prototypes=4, box_loss="giou", score_threshold=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([image(64, 64)], [objects((64, 64), [8, 8, 40, 40])])
        with torch.inference_mode():
            (found,) = model.eval()([image(64, 64)])
    every_gradient(model, losses)
    assert found.boxes.dtype == found.scores.dtype == found.masks.probs.dtype == torch.float32


def test_parts_that_do_not_fit():
    anchors = retinanet_anchors([8])
    with pytest.raises(ValueError, match=r"are for 6 anchors a position, the .* makes 9"):
        RetinaNetHead(anchors, RetinaNetConvs(8, 6, 2))
    with pytest.raises(ValueError, match="are for 4 prototypes, the masks have 0"):
        RetinaNetHead(anchors, RetinaNetConvs(8, 9, 2, num_prototypes=4))
    with pytest.raises(ValueError, match="are for 0 prototypes, the masks have 32"):
        RetinaNetHead(anchors, RetinaNetConvs(8, 9, 2), masks=PrototypeMasks(8, channels=8))
    with pytest.raises(ValueError, match="box_loss must be 'l1' or 'giou', got 'l2'"):
        RetinaNetHead(anchors, RetinaNetConvs(8, 9, 2), box_loss="l2")


def test_the_builder_with_masks():
    with torch.device("meta"):
        model = retinanet_resnet50_fpn_seg(2)
    assert model.head.masks.num_prototypes == model.head.convs.num_prototypes == 32
    assert model.head.box_loss == "giou"
    assert model.neck.strides == [8, 16, 32, 64, 128]
