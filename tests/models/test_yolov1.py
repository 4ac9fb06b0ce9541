from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from instseg.models.detection.yolov1 import YOLOv1Head, yolov1
from instseg.models.heads.yolov1 import YOLOv1Predictor
from instseg.structures import ImageBatch, Instances

from .grid_reference import (
    NUM_CLASSES,
    SIZE,
    Fixed,
    around,
    batch_of,
    cell_of,
    history,
    image,
    iou,
    mostly_in,
    objects_of,
    scene,
)

S = 3
FEATURES = [torch.zeros(4, 1, 2, 2)]
STEP = (SIZE[1] / S, SIZE[0] / S)


def head_saying(
    boxes: torch.Tensor, confidence: torch.Tensor, classes: torch.Tensor, **options
) -> YOLOv1Head:
    grid = math.isqrt(boxes.shape[1])
    predictor = YOLOv1Predictor(1, classes.shape[-1], grid=grid, num_boxes=2, hidden=1)
    head = YOLOv1Head(predictor, **options)
    head.predictor = Fixed(boxes, confidence, classes)
    head.predictor.grid = grid
    return head


def random_outputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some boxes are points, so that no box of their cell overlaps its object."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(4, S * S, 2, 4, generator=generator)
    boxes[:, ::2, :, 2:] = 0
    confidence = torch.randn(4, S * S, 2, generator=generator)
    return boxes, confidence, torch.randn(4, S * S, NUM_CLASSES, generator=generator)


def decoded(raw: list[float], row: int, column: int) -> list[float]:
    """x, y relative to the cell, square roots of w, h relative to the image."""
    x, y = (raw[0] + column) * STEP[0], (raw[1] + row) * STEP[1]
    return around(x, y, raw[2] ** 2 * SIZE[1], raw[3] ** 2 * SIZE[0])


def distance(a: list[float], b: list[float]) -> float:
    """Of centres and sides, relative to the image."""
    height, width = SIZE
    parts = [
        (a[0] + a[2] - b[0] - b[2]) / 2 / width,
        (a[1] + a[3] - b[1] - b[3]) / 2 / height,
        (a[2] - a[0] - b[2] + b[0]) / width,
        (a[3] - a[1] - b[3] + b[1]) / height,
    ]
    return math.sqrt(sum(p * p for p in parts))


def test_decoding_is_that_of_the_paper():
    outputs = random_outputs()
    boxes = head_saying(*outputs).decode(outputs[0], SIZE)
    for cell in range(S * S):
        for k in range(2):
            expected = decoded(outputs[0][1, cell, k].double().tolist(), *divmod(cell, S))
            assert boxes[1, cell, k].tolist() == pytest.approx(expected, abs=1e-4)


def reference_losses(outputs, targets) -> tuple[list[float], dict[str, int]]:
    """Equation 3 in float64, and how often each rule was at work."""
    box = objectness = classification = 0.0
    seen = {"by IoU": 0, "by distance": 0, "ignored": 0}
    for boxes, confidence, classes, target in zip(
        *(o.double().tolist() for o in outputs), targets, strict=True
    ):
        objects, crowds = objects_of(target)
        owner = {cell_of(gt, (S, S), STEP): (gt, label) for gt, label in objects}
        for cell in range(S * S):
            row, column = divmod(cell, S)
            corner = [column * STEP[0], row * STEP[1]]
            rectangle = [*corner, corner[0] + STEP[0], corner[1] + STEP[1]]
            responsible = None
            if (row, column) in owner:
                gt, label = owner[row, column]
                predicted = [decoded(b, row, column) for b in boxes[cell]]
                overlaps = [iou(p, gt) for p in predicted]
                if max(overlaps) > 0:
                    responsible = overlaps.index(max(overlaps))
                    seen["by IoU"] += 1
                else:
                    away = [distance(p, gt) for p in predicted]
                    responsible = away.index(min(away))
                    seen["by distance"] += 1
                wanted = [
                    (gt[0] + gt[2]) / 2 / STEP[0] - column,
                    (gt[1] + gt[3]) / 2 / STEP[1] - row,
                    math.sqrt((gt[2] - gt[0]) / SIZE[1]),
                    math.sqrt((gt[3] - gt[1]) / SIZE[0]),
                ]
                said = boxes[cell][responsible]
                box += 5 * sum((a - b) ** 2 for a, b in zip(said, wanted, strict=True))
                objectness += (confidence[cell][responsible] - overlaps[responsible]) ** 2
                classification += sum((p - (c == label)) ** 2 for c, p in enumerate(classes[cell]))
            for k in range(2):
                if k == responsible:
                    continue
                if mostly_in(rectangle, crowds):
                    seen["ignored"] += 1
                else:
                    objectness += 0.5 * confidence[cell][k] ** 2
    return [box / 4, objectness / 4, classification / 4], seen


def test_losses_are_those_of_a_loop():
    outputs, targets = random_outputs(), scene()
    expected, seen = reference_losses(outputs, targets)
    assert min(seen.values()) > 0
    losses = head_saying(*outputs).loss(batch_of(targets), FEATURES, targets)
    assert list(losses) == ["loss_box_reg", "loss_objectness", "loss_classifier"]
    assert [v.item() for v in losses.values()] == pytest.approx(expected, rel=1e-4)


def test_losses_hand_worked():
    """2 x 2 cells of 32 pixels; the centre of [16, 16, 48, 48] is the last one's corner.

    Its first box is 16 x 64 around (32, 32), of IoU 512/1536 = 1/3; the second, 41 x 16 around
    (48, 48), overlaps less. So the first is responsible: its centre is right, its square roots 0.5
    and 1 should be sqrt(0.5). Every confidence is 0.2, to be 1/3 there and 0 seven times.
    """
    boxes = torch.zeros(1, 4, 2, 4)
    boxes[0, 3] = torch.tensor([[0.0, 0, 0.5, 1.0], [0.5, 0.5, 0.8, 0.5]])
    classes = torch.full((1, 4, 2), 9.0)
    classes[0, 3] = torch.tensor([0.7, 0.2])
    head = head_saying(boxes, torch.full((1, 4, 2), 0.2), classes)
    batch = ImageBatch(torch.zeros(1, 3, 64, 64), [(64, 64)])
    target = Instances((64, 64), torch.tensor([[16.0, 16, 48, 48]]), torch.tensor([0]))
    losses = head.loss(batch, [torch.zeros(1, 1, 1, 1)], [target])
    root = math.sqrt(0.5)
    box = 5 * ((0.5 - root) ** 2 + (1 - root) ** 2)
    assert losses["loss_box_reg"].item() == pytest.approx(box, rel=1e-5)
    confidence = (0.2 - 1 / 3) ** 2 + 0.5 * 7 * 0.04
    assert losses["loss_objectness"].item() == pytest.approx(confidence, rel=1e-5)
    assert losses["loss_classifier"].item() == pytest.approx(0.3**2 + 0.2**2, rel=1e-5)


def test_the_last_of_two_objects_has_the_cell():
    boxes = torch.tensor([[50.0, 34, 70, 60], [52, 36, 72, 62], [0, 0, 8, 8]])
    outputs = [o[:1] for o in random_outputs()]
    target = Instances(SIZE, boxes, torch.tensor([0, 2, 1]))
    assigned = head_saying(*outputs).assign(outputs[0], SIZE, [target])
    assert assigned.cell.tolist() == [0, 4]
    assert assigned.labels.tolist() == [1, 2]


def test_detections_hand_worked():
    """Scores are products of two numbers that are first brought into 0..1."""
    boxes = torch.zeros(1, 4, 2, 4)
    boxes[0, 0, 0] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    confidence, classes = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    confidence[0, 0], classes[0, 0] = torch.tensor([0.5, -3]), torch.tensor([1.4, -2])
    head = head_saying(boxes, confidence, classes, score_threshold=0.01)
    batch = ImageBatch(torch.zeros(1, 3, 64, 64), [(64, 64)])
    (found,) = head.detect(batch, [torch.zeros(1, 1, 1, 1)])
    assert found.scores.tolist() == [0.5]
    assert found.labels.tolist() == [0]
    assert found.boxes.tolist() == [[8, 8, 24, 24]]


def test_predictor_gives_each_cell_its_numbers():
    predictor = YOLOv1Predictor(2, 3, grid=7, num_boxes=2, hidden=8).eval()
    nn.init.zeros_(predictor.output.weight)
    predictor.output.bias.data = torch.arange(7 * 7 * 13.0)
    for size in ((7, 7), (9, 14)):
        boxes, confidence, classes = predictor(torch.randn(1, 2, *size))
        assert boxes.shape == (1, 49, 2, 4)
        assert boxes[0, 5, 1].tolist() == [5 * 13 + 4 + i for i in range(4)]
        assert confidence[0, 5].tolist() == [5 * 13 + 8, 5 * 13 + 9]
        assert classes[0, 5].tolist() == [5 * 13 + 10 + i for i in range(3)]


def test_parameters_are_those_of_the_paper():
    """Figure 3 with batch norm's two a channel, then 7 x 7 x 1024 to 4096 to 7 x 7 x 30."""
    convolutions = [
        *[(7, 3, 64), (3, 64, 192), (1, 192, 128), (3, 128, 256), (1, 256, 256), (3, 256, 512)],
        *[(1, 512, 256), (3, 256, 512)] * 4,
        *[(1, 512, 512), (3, 512, 1024)],
        *[(1, 1024, 512), (3, 512, 1024)] * 2,
        *[(3, 1024, 1024)] * 4,
    ]
    assert len(convolutions) == 24
    backbone = sum(k * k * i * o + 2 * o for k, i, o in convolutions)
    connected = (49 * 1024 + 1) * 4096 + (4096 + 1) * 49 * 30
    with torch.device("meta"):
        model = yolov1(20)
    assert sum(p.numel() for p in model.backbone.parameters()) == backbone == 60_169_152
    assert sum(p.numel() for p in model.parameters()) == backbone + connected == 271_716_734
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 24


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return yolov1(NUM_CLASSES, width=1 / 32, hidden=64)


def test_loss_falls(small):
    values = history(small)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 5), (448, 448)), ((100, 450), (448, 512)), ((448, 448), (448, 448))]
)
def test_images_are_padded_to_the_papers_size_at_least(small, size, padded):
    assert small.preprocess([image(*size)]).tensor.shape[-2:] == padded
