from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetRegressionHead,
)

from instseg.losses.retinanet import (
    BACKGROUND,
    IGNORED,
    focal_classification_loss,
    giou_loss,
    offset_loss,
)
from instseg.models.box_coder import BoxCoder

NONE = torch.zeros(0, dtype=torch.int64)


def focal(logit: float, target: int, alpha: float, gamma: float) -> float:
    """Equation 5 of the paper."""
    p = 1 / (1 + math.exp(-logit))
    p_t = p if target else 1 - p
    alpha_t = alpha if target else 1 - alpha
    return -alpha_t * (1 - p_t) ** gamma * math.log(p_t)


def focal_loops(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> float:
    total = 0.0
    for image_logits, image_labels in zip(logits.double().tolist(), labels.tolist(), strict=True):
        losses, positives = 0.0, 0
        for row, label in zip(image_logits, image_labels, strict=True):
            if label == -2:
                continue
            positives += label >= 0
            losses += sum(focal(x, int(c == label), alpha, gamma) for c, x in enumerate(row))
        total += losses / max(positives, 1)
    return total / len(logits)


def giou(a: list[float], b: list[float]) -> float:
    """Algorithm 1 of Rezatofighi et al."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    union = sum(areas) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def some_boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 20
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 30], dim=1)


class TestClassification:
    def test_hand_worked(self):
        """At logit 0 every entry has p_t = 1/2: 1/4 log 2, times 1/4 (object) or 3/4 (not).

        Image 1: two positives and one negative of 2 classes, 2 objects and 4 absences, so
        (2 + 12) / 16 log 2 over 2. Image 2: no positive, one negative, so 6/16 log 2 over 1.
        """
        labels = torch.tensor([[0, 1, BACKGROUND, IGNORED], [IGNORED, IGNORED, BACKGROUND, -2]])
        loss = focal_classification_loss(torch.zeros(2, 4, 2), labels)
        assert loss.item() == pytest.approx((14 / 16 / 2 + 6 / 16) / 2 * math.log(2))
        assert loss.dtype == torch.float32

    @pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.75, 1.5)])
    def test_equal_to_the_definition(self, alpha, gamma):
        logits = torch.randn(3, 20, 4) * 3
        labels = torch.randint(-2, 4, (3, 20))
        labels[2] = labels[2].clamp(max=-1)
        loss = focal_classification_loss(logits, labels, alpha=alpha, gamma=gamma)
        assert loss.item() == pytest.approx(focal_loops(logits, labels, alpha, gamma), rel=1e-5)

    def test_equal_to_torchvision(self):
        logits, labels = torch.randn(2, 30, 3) * 2, torch.randint(-2, 3, (2, 30))
        head = SimpleNamespace(BETWEEN_THRESHOLDS=TorchvisionMatcher.BETWEEN_THRESHOLDS)
        # Their targets name the object, here one of each class.
        theirs = RetinaNetClassificationHead.compute_loss(
            head, [{"labels": torch.arange(3)}] * 2, {"cls_logits": logits}, list(labels)
        )
        torch.testing.assert_close(focal_classification_loss(logits, labels), theirs)

    def test_ignored_anchors_get_no_gradient(self):
        logits = torch.randn(1, 3, 2, requires_grad=True)
        focal_classification_loss(logits, torch.tensor([[IGNORED, 1, BACKGROUND]])).backward()
        assert logits.grad[0].any(dim=1).tolist() == [False, True, True]

    def test_all_ignored_is_nothing(self):
        logits = torch.randn(2, 3, 2, requires_grad=True)
        loss = focal_classification_loss(logits, torch.full((2, 3), IGNORED))
        loss.backward()
        assert loss == 0
        assert not logits.grad.any()


class TestBoxes:
    def test_hand_worked_offsets(self):
        """Image 0 has errors of 4 and 2 on two positives, image 2 of 6 on one, image 1 none."""
        offsets = torch.tensor([[1.0, -1, 1, 1], [0, 2, 0, 0], [3, 0, 0, -3]])
        loss = offset_loss(offsets, torch.zeros(3, 4), torch.tensor([0, 0, 2]), 3)
        assert loss.item() == pytest.approx(((4 + 2) / 2 + 0 + 6) / 3)

    def test_hand_worked_giou(self):
        """Equal boxes cost 0. Unit squares one apart have IoU 0 and a hull of 3: 1 + 1/3."""
        boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]])
        targets = torch.tensor([[0.0, 0, 1, 1], [2, 0, 3, 1]])
        assert giou_loss(boxes, targets, torch.tensor([0, 0]), 1).item() == pytest.approx(2 / 3)
        assert giou_loss(boxes, targets, torch.tensor([0, 1]), 2).item() == pytest.approx(2 / 3)
        assert giou_loss(boxes, targets, torch.tensor([0, 1]), 4).item() == pytest.approx(1 / 3)

    def test_equal_to_the_definition(self):
        boxes, targets = some_boxes(12), some_boxes(12)
        image = torch.tensor([0] * 5 + [2] * 7)
        weights = [1 / 5] * 5 + [1 / 7] * 7
        pairs = list(zip(boxes.double().tolist(), targets.double().tolist(), weights, strict=True))
        expected = sum(w * (1 - giou(a, b)) for a, b, w in pairs) / 3
        assert giou_loss(boxes, targets, image, 3).item() == pytest.approx(expected, rel=1e-5)
        differences = ((abs(x - y) for x, y in zip(a, b, strict=True)) for a, b, _ in pairs)
        expected = sum(w * sum(d) for w, d in zip(weights, differences, strict=True)) / 3
        assert offset_loss(boxes, targets, image, 3).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("kind", ["l1", "giou"])
    def test_equal_to_torchvision(self, kind):
        anchors, gt_boxes, offsets = some_boxes(40), some_boxes(6), torch.randn(2, 40, 4) * 0.3
        matched = torch.randint(-2, 6, (2, 40))
        head = SimpleNamespace(_loss_type=kind, box_coder=TorchvisionBoxCoder((1.0, 1.0, 1.0, 1.0)))
        theirs = RetinaNetRegressionHead.compute_loss(
            head,
            [{"boxes": gt_boxes}] * 2,
            {"bbox_regression": offsets},
            [anchors] * 2,
            list(matched),
        )
        image, anchor = (matched >= 0).nonzero(as_tuple=True)
        wanted, chosen, coder = gt_boxes[matched[image, anchor]], offsets[image, anchor], BoxCoder()
        if kind == "l1":
            ours = offset_loss(chosen, coder.encode(wanted, anchors[anchor]), image, 2)
        else:
            ours = giou_loss(coder.decode(chosen, anchors[anchor]), wanted, image, 2)
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("loss", [offset_loss, giou_loss])
    def test_no_positives_is_zero_with_a_gradient(self, loss):
        predicted = torch.randn(5, 4, requires_grad=True)
        value = loss(predicted[NONE], torch.zeros(0, 4), NONE, 2)
        value.backward()
        assert value == 0
        assert predicted.grad.shape == (5, 4)
        assert not predicted.grad.any()

    @pytest.mark.parametrize("loss", [offset_loss, giou_loss])
    def test_half_precision_is_computed_in_float32(self, loss):
        boxes, image = some_boxes(3).bfloat16(), torch.tensor([0, 0, 1])
        got = loss(boxes, some_boxes(3), image, 2)
        assert got.dtype == torch.float32
