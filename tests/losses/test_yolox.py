"""The losses of YOLOX against loops in float64 and a case worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from instseg.losses.yolox import yolox_l1_loss, yolox_losses
from tests.contracts.reference import iou


def cross_entropy(logit: float, wanted: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(wanted * math.log(p) + (1 - wanted) * math.log(1 - p))


def case(positives: int, *, cells: int = 20, num_classes: int = 4) -> dict[str, torch.Tensor]:
    corner = torch.rand(positives, 2) * 20
    boxes = torch.cat([corner, corner + 5 + torch.rand(positives, 2) * 10], dim=1)
    counted = torch.rand(cells) > 0.2
    positive = torch.randperm(cells)[:positives]
    counted[positive] = True
    return {
        "objectness": torch.randn(cells, requires_grad=True),
        "counted": counted,
        "positive": positive,
        "boxes": (boxes + torch.randn(positives, 4)).requires_grad_(),
        "target_boxes": boxes,
        "classes": torch.randn(positives, num_classes, requires_grad=True),
        "labels": torch.randint(0, num_classes, (positives,)),
    }


@pytest.mark.parametrize("positives", [0, 1, 7])
def test_plain_loops(positives):
    given = case(positives)
    box, objectness, classes = yolox_losses(**given)
    overlaps = [
        iou(a, b)
        for a, b in zip(given["boxes"].tolist(), given["target_boxes"].tolist(), strict=True)
    ]
    count = max(positives, 1)
    assert box.item() == pytest.approx(sum(1 - o**2 for o in overlaps) / count, rel=1e-5)
    wanted = sum(
        cross_entropy(logit, float(cell in given["positive"].tolist()))
        for cell, logit in enumerate(given["objectness"].tolist())
        if given["counted"][cell]
    )
    assert objectness.item() == pytest.approx(wanted / count, rel=1e-5)
    wanted = sum(
        cross_entropy(logit, overlaps[p] if c == given["labels"][p] else 0.0)
        for p, row in enumerate(given["classes"].tolist())
        for c, logit in enumerate(row)
    )
    assert classes.item() == pytest.approx(wanted / count, rel=1e-5)


def test_worked_by_hand():
    """Two cells, one positive, IoU 1/2, every logit 0: each cross-entropy is log 2.

    1 - 1/4 = 0.75; two cells give 2 log 2; two classes with targets 1/2 and 0 give 2 log 2.
    """
    box, objectness, classes = yolox_losses(
        torch.zeros(2),
        torch.tensor([True, True]),
        torch.tensor([1]),
        torch.tensor([[0.0, 0, 10, 5]]),
        torch.tensor([[0.0, 0, 10, 10]]),
        torch.zeros(1, 2),
        torch.tensor([0]),
    )
    assert box.item() == pytest.approx(0.75)
    assert objectness.item() == pytest.approx(2 * math.log(2))
    assert classes.item() == pytest.approx(2 * math.log(2))


def test_no_gradient_through_the_class_target():
    given = case(5)
    _, _, classes = yolox_losses(**given)
    (gradient,) = torch.autograd.grad(classes, given["boxes"], allow_unused=True)
    assert gradient is None


def test_without_positives_everything_stays_in_the_graph():
    given = case(0)
    box, objectness, classes = yolox_losses(**given)
    assert box == 0
    assert classes == 0
    (box + objectness + classes).backward()
    assert given["objectness"].grad[given["counted"]].abs().min() > 0
    assert (given["objectness"].grad[~given["counted"]] == 0).all()
    assert given["boxes"].grad.shape == (0, 4)
    assert given["classes"].grad.shape == (0, 4)


def test_boxes_without_area_have_finite_gradients():
    boxes = torch.tensor([[3.0, 3, 3, 3]], requires_grad=True)
    nothing = torch.tensor([[3.0, 3, 3, 3]])
    cell = torch.tensor([0])
    box, _, _ = yolox_losses(
        torch.zeros(1), torch.tensor([True]), cell, boxes, nothing, torch.zeros(1, 2), cell
    )
    box.backward()
    assert box.item() == 1
    assert boxes.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    given = case(3)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}
    half["boxes"], half["target_boxes"] = given["boxes"], given["target_boxes"]
    for got, wanted in zip(yolox_losses(**half), yolox_losses(**given), strict=True):
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(wanted.item(), rel=2e-2)


def test_l1():
    """|1| + |2| + |0| + |3| and |1| of two boxes: 7 / 2."""
    offsets = torch.tensor([[1.0, 2, 0, -3], [0, 0, 1, 0]])
    assert yolox_l1_loss(offsets, torch.zeros(2, 4)).item() == 3.5
    assert yolox_l1_loss(torch.zeros(0, 4), torch.zeros(0, 4)) == 0
