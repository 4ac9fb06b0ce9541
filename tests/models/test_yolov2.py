from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from instseg.losses.yolov2 import RegionTargets, region_losses
from instseg.models.detection.yolov2 import COCO_ANCHORS, YOLOv2Head, yolov2_darknet19
from instseg.models.heads.yolov2 import YOLOv2Predictor
from instseg.models.necks.passthrough import Passthrough
from instseg.structures import ImageBatch, Instances

from .grid_reference import (
    NUM_CLASSES,
    SIZE,
    Fixed,
    around,
    batch_of,
    cell_of,
    cross_entropy,
    history,
    iou,
    mostly_in,
    objects_of,
    scene,
    sigmoid,
)

# The first two are near each other, so that the second's boxes overlap objects of the first.
ANCHORS = [(34.0, 28.0), (38.0, 32.0), (12.0, 40.0)]
GRID = (3, 4)
FEATURES = [torch.zeros(4, 1, *GRID)]


def head_saying(raw: torch.Tensor, anchors=ANCHORS, **options) -> YOLOv2Head:
    classes = raw.shape[-1] - 5
    head = YOLOv2Head(YOLOv2Predictor(1, classes, len(anchors), channels=1), anchors, **options)
    head.predictor = Fixed(raw)
    return head


def random_raw() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (4, GRID[0] * GRID[1] * len(ANCHORS), 5 + NUM_CLASSES)
    raw = torch.randn(shape, generator=generator)
    raw[..., :4] *= 0.4
    # The third anchor of the first cell finds the object 36 x 26 around (30, 25) of the first.
    raw[0, 2, :5] = torch.tensor([2.7, 1.3, 1.1, -0.43, 1.0])
    return raw


def decoded(raw: list[float], row: int, column: int, anchor: tuple[float, float]) -> list[float]:
    """b_x = sigma(t_x) + c_x, b_y = sigma(t_y) + c_y, b_w = p_w e^t_w, b_h = p_h e^t_h."""
    x, y = sigmoid(raw[0]) + column, sigmoid(raw[1]) + row
    return around(32 * x, 32 * y, anchor[0] * math.exp(raw[2]), anchor[1] * math.exp(raw[3]))


def slots():
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            for a, anchor in enumerate(ANCHORS):
                yield (row * GRID[1] + column) * len(ANCHORS) + a, row, column, anchor


def test_decoding_is_that_of_the_paper():
    raw = random_raw()
    boxes = head_saying(raw).decode(raw, GRID)
    for b in range(4):
        for slot, row, column, anchor in slots():
            expected = decoded(raw[b, slot].double().tolist(), row, column, anchor)
            assert boxes[b, slot].tolist() == pytest.approx(expected, abs=1e-4)


def reference_losses(
    raw: torch.Tensor, targets: list[Instances]
) -> tuple[list[float], dict[str, int]]:
    """The three losses in float64, and how many predictions are neither, and why."""
    box = objectness = classes = 0.0
    ignored = {"in a crowd": 0, "on an object": 0}
    for prediction, target in zip(raw.double().tolist(), targets, strict=True):
        objects, crowds = objects_of(target)
        owner = {}
        for gt, label in objects:
            row, column = cell_of(gt, GRID, (32, 32))
            w, h = gt[2] - gt[0], gt[3] - gt[1]
            shapes = [iou(around(0, 0, w, h), around(0, 0, *a)) for a in ANCHORS]
            best = shapes.index(max(shapes))
            owner[(row * GRID[1] + column) * len(ANCHORS) + best] = (gt, label)
        for slot, row, column, anchor in slots():
            t = prediction[slot]
            predicted = decoded(t, row, column, anchor)
            confidence = sigmoid(t[4])
            if slot not in owner:
                if mostly_in(predicted, crowds):
                    ignored["in a crowd"] += 1
                elif any(iou(predicted, o) > 0.6 for o, _ in objects):
                    ignored["on an object"] += 1
                else:
                    objectness += 0.5 * 1 * confidence**2
                continue
            gt, label = owner[slot]
            w, h = gt[2] - gt[0], gt[3] - gt[1]
            errors = [
                sigmoid(t[0]) - ((gt[0] + gt[2]) / 64 - column),
                sigmoid(t[1]) - ((gt[1] + gt[3]) / 64 - row),
                t[2] - math.log(w / anchor[0]),
                t[3] - math.log(h / anchor[1]),
            ]
            weight = 2 - w * h / (SIZE[0] * SIZE[1])
            box += 0.5 * weight * sum(e * e for e in errors)
            objectness += 0.5 * 5 * (confidence - iou(predicted, gt)) ** 2
            classes += cross_entropy(t[5:], label)
    return [box / 4, objectness / 4, classes / 4], ignored


def test_losses_are_those_of_a_loop():
    raw, targets = random_raw(), scene()
    expected, ignored = reference_losses(raw, targets)
    assert min(ignored.values()) > 0
    assert all(e > 0.1 for e in expected)
    losses = head_saying(raw).loss(batch_of(targets), FEATURES, targets)
    assert list(losses) == ["loss_box_reg", "loss_objectness", "loss_classifier"]
    assert [v.item() for v in losses.values()] == pytest.approx(expected, rel=1e-4)


def test_losses_hand_worked():
    """One cell of 32 pixels, anchors 16 x 16 and 32 x 8, all outputs 0: centres, shapes exact.

    The object is 16 x 24: IoU of shapes 256/384 and 128/512, so it is the first anchor's. Only its
    height is wrong, by log 1.5, weighted by 2 - 384/1024. The IoU of its box, 2/3, is the target of
    its confidence, 1/2; the other anchor's box overlaps by 1/4 and should have confidence 0.
    """
    raw = torch.zeros(1, 2, 8)
    target = Instances((32, 32), torch.tensor([[8.0, 4, 24, 28]]), torch.tensor([2]))
    head = head_saying(raw, anchors=[(16, 16), (32, 8)])
    batch = ImageBatch(torch.zeros(1, 3, 32, 32), [(32, 32)])
    losses = head.loss(batch, [torch.zeros(1, 1, 1, 1)], [target])
    assert losses["loss_box_reg"].item() == pytest.approx(0.5 * 1.625 * math.log(1.5) ** 2)
    assert losses["loss_objectness"].item() == pytest.approx(0.5 * (5 / 36 + 1 / 4))
    assert losses["loss_classifier"].item() == pytest.approx(math.log(3))


def test_gradients_are_darknets_deltas():
    """scale (prediction - truth), times sigma' behind a sigmoid; softmax - one hot for classes."""
    raw = torch.randn(5, 8, requires_grad=True)
    targets = RegionTargets(
        positive=torch.tensor([3]),
        boxes=torch.tensor([[0.2, 0.9, 0.3, -0.4]]),
        box_weights=torch.tensor([1.5]),
        iou=torch.tensor([0.7]),
        labels=torch.tensor([1]),
        negative=torch.tensor([True, False, True, False, True]),
    )
    sum(region_losses(raw, targets, num_images=2)).backward()
    x = raw.detach()
    s = x.sigmoid()
    expected = torch.zeros(5, 8)
    for i in (0, 2, 4):
        expected[i, 4] = s[i, 4] * s[i, 4] * (1 - s[i, 4])
    expected[3, :2] = 1.5 * (s[3, :2] - targets.boxes[0, :2]) * s[3, :2] * (1 - s[3, :2])
    expected[3, 2:4] = 1.5 * (x[3, 2:4] - targets.boxes[0, 2:])
    expected[3, 4] = 5 * (s[3, 4] - 0.7) * s[3, 4] * (1 - s[3, 4])
    expected[3, 5:] = x[3, 5:].softmax(0) - torch.tensor([0.0, 1, 0])
    torch.testing.assert_close(raw.grad, expected / 2)


def test_later_of_two_objects_takes_the_anchor_and_another_shape_has_its_own():
    boxes = torch.tensor([[30.0, 34, 62, 62], [32, 34, 64, 62], [42, 28, 54, 68]])
    target = Instances(SIZE, boxes, torch.tensor([0, 1, 2]))
    raw = torch.zeros(1, 36, 8)
    assigned = head_saying(raw).assign(raw, GRID, [target])
    cell = 1 * GRID[1] + 1
    assert assigned.positive.tolist() == [cell * 3, cell * 3 + 2]
    assert assigned.labels.tolist() == [1, 2]
    assert assigned.boxes[0, :2].tolist() == pytest.approx([0.5, 0.5])


def test_a_centre_on_the_far_edge_is_in_the_last_cell():
    target = Instances(SIZE, torch.tensor([[127.98, 95.98, 300, 300]]), torch.tensor([0]))
    raw = torch.zeros(1, 36, 8)
    assigned = head_saying(raw).assign(raw, GRID, [target])
    assert assigned.positive.item() // 3 == 11
    assert assigned.boxes.isfinite().all()
    assert assigned.boxes[0, :2].max() <= 1


def test_detections_hand_worked():
    """One box of score 0.9 * 0.8, its duplicate of another class, and a worse duplicate of it."""
    raw = torch.full((1, 36, 8), -20.0)
    logit = math.log(9)
    for slot, confidence in ((15, logit), (16, 0.0)):
        raw[0, slot, :5] = torch.tensor([0, 0, 0, 0, confidence])
        raw[0, slot, 5:] = torch.log(torch.tensor([0.15, 0.8, 0.05]))
    head = head_saying(raw, score_threshold=0.1)
    batch = ImageBatch(torch.zeros(1, 3, *SIZE), [(60, 128)])
    (found,) = head.detect(batch, [torch.zeros(1, 1, *GRID)])
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.72, 0.135])
    # Slot 15 is anchor 0 of the cell at row 1, column 1: 34 x 28 around (48, 48), above y = 60.
    assert found.boxes[0].tolist() == pytest.approx([31, 34, 65, 60])


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (ANCHORS[:2], "there are 2 anchors, but the predictor is made for 3"),
        ([*ANCHORS[:2], (0.0, 5.0)], r"anchors must be positive \(width, height\)"),
        ([*ANCHORS[:2], (5.0,)], r"anchors must be positive \(width, height\)"),
    ],
)
def test_wrong_anchors_are_named(anchors, message):
    with pytest.raises(ValueError, match=message):
        YOLOv2Head(YOLOv2Predictor(8, 3, 3, channels=8), anchors)


def test_passthrough_stacks_neighbours_into_channels():
    neck = Passthrough([3, 5], channels=7, passthrough_channels=2)
    assert neck.channels == 4 * 2 + 7
    neck.fine, neck.coarse = nn.Identity(), nn.Identity()
    fine, coarse = torch.randn(1, 2, 4, 6), torch.randn(1, 7, 2, 3)
    (out,) = neck([fine, coarse])
    assert out.shape == (1, 15, 2, 3)
    for row in range(2):
        for column in range(3):
            patch = fine[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert sorted(out[0, :8, row, column].tolist()) == sorted(patch.flatten().tolist())
    assert torch.equal(out[:, 8:], coarse)


def test_parameters_are_the_released_networks():
    """``yolov2.weights`` for COCO has 203,934,260 bytes: 16 of header, then every float32.

    These are the weights of 22 convolutions with batch norm (four figures a channel) and those and
    the biases of the last. 425 = 5 anchors x (5 + 80 classes); 1280 = 1024 + 4 x 64.
    """
    with torch.device("meta"):
        model = yolov2_darknet19(80)
    state = {k: v.numel() for k, v in model.state_dict().items() if "num_batches" not in k}
    assert sum(state.values()) == (203_934_260 - 16) // 4
    added = 2 * (1024 * 1024 * 9 + 2048) + (512 * 64 + 128) + (1280 * 1024 * 9 + 2048)
    added += 1024 * 425 + 425
    head = sum(p.numel() for m in (model.neck, model.head) for p in m.parameters())
    assert head == added
    assert len(model.head.anchors) == len(COCO_ANCHORS) == 5
    assert COCO_ANCHORS[0] == pytest.approx([18.32736, 21.67632])


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return yolov2_darknet19(NUM_CLASSES, width=1 / 16)


def test_loss_falls(small):
    values = history(small)
    assert values[-1] < 0.9 * values[0]
