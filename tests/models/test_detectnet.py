from __future__ import annotations

import math

import pytest
import torch
import torchvision.models as tv
from torch import nn

from instseg.models.backbones.googlenet import GoogLeNet
from instseg.models.detection.detectnet import DetectNetHead, detectnet_googlenet
from instseg.models.heads.detectnet import CoverageHead
from instseg.structures import ImageBatch, Instances

from .grid_reference import (
    NUM_CLASSES,
    SIZE,
    Fixed,
    area,
    around,
    batch_of,
    history,
    mostly_in,
    objects_of,
    overlap,
    scene,
    sigmoid,
)

GRID = (6, 8)
FEATURES = [torch.zeros(4, 1, *GRID)]


def head_saying(coverage: torch.Tensor, corners: torch.Tensor, **options) -> DetectNetHead:
    head = DetectNetHead(CoverageHead(1, coverage.shape[-1]), **options)
    head.predictor = Fixed(coverage, corners)
    return head


def random_outputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coverage = torch.randn(4, GRID[0] * GRID[1], NUM_CLASSES, generator=generator)
    return coverage, torch.randn(4, GRID[0] * GRID[1], 4, generator=generator)


def reference_losses(outputs, targets) -> tuple[list[float], dict[str, int]]:
    """In float64 from the published network's rules, and how often each was at work."""
    covered = box = 0.0
    seen = {"overwritten": 0, "ignored": 0}
    for coverage, corners, target in zip(
        *(o.double().tolist() for o in outputs), targets, strict=True
    ):
        objects, crowds = objects_of(target)
        for cell in range(GRID[0] * GRID[1]):
            row, column = divmod(cell, GRID[1])
            rectangle = [column * 16, row * 16, column * 16 + 16, row * 16 + 16]
            owner = None
            for gt, label in objects:
                w, h = gt[2] - gt[0], gt[3] - gt[1]
                x, y = (gt[0] + gt[2]) / 2, (gt[1] + gt[3]) / 2
                region = around(x, y, min(w, max(20, 0.4 * w)), min(h, max(20, 0.4 * h)))
                if overlap(rectangle, region) > 0:
                    seen["overwritten"] += owner is not None
                    owner = gt, label, region
            if owner is None and mostly_in(rectangle, crowds):
                seen["ignored"] += 1
                continue
            for c, logit in enumerate(coverage[cell]):
                wanted = owner is not None and owner[1] == c
                covered += 0.5 * (sigmoid(logit) - wanted) ** 2
            if owner is not None:
                gt, _, region = owner
                weight = min(1, 256 / area(region))
                sides = [max(gt[2] - gt[0], 1), max(gt[3] - gt[1], 1)] * 2
                for i in range(4):
                    predicted = (corners[cell][i] + (column, row)[i % 2]) * 16
                    box += 0.5 * 2 * weight * abs(predicted - gt[i]) / sides[i]
    return [covered / 4, box / 4], seen


def test_losses_are_those_of_a_loop():
    outputs, targets = random_outputs(), scene()
    expected, seen = reference_losses(outputs, targets)
    assert min(seen.values()) > 0
    losses = head_saying(*outputs).loss(batch_of(targets), FEATURES, targets)
    assert list(losses) == ["loss_coverage", "loss_box_reg"]
    assert [v.item() for v in losses.values()] == pytest.approx(expected, rel=1e-4)


def test_losses_hand_worked():
    """2 x 2 cells, the object [2, 2, 30, 18]; its region is 20 wide and, at most its box, 16 high.

    The region [6, 2, 26, 18] touches all four cells and has 320/256 of a cell's area, so each
    weighs 0.8. In cells the object is [1/8, 1/8, 15/8, 9/8], of sides 7/4 and 1. All outputs are 0:
    the distances of corners in x, relative to the width, are (1/8 + 15/8) / (7/4) = 8/7 from the
    left cells and (7/8 + 7/8) / (7/4) = 1 from the right ones; in y 10/8 from above, 1 from below.
    """
    head = head_saying(torch.zeros(1, 4, 2), torch.zeros(1, 4, 4))
    batch = ImageBatch(torch.zeros(1, 3, 32, 32), [(32, 32)])
    target = Instances((32, 32), torch.tensor([[2.0, 2, 30, 18]]), torch.tensor([1]))
    losses = head.loss(batch, [torch.zeros(1, 1, 2, 2)], [target])
    assert losses["loss_coverage"].item() == pytest.approx(0.5 * 4 * 2 * 0.25)
    distances = 2 * (8 / 7 + 1) + 2 * (10 / 8 + 1)
    assert losses["loss_box_reg"].item() == pytest.approx(2 * 0.5 * 0.8 * distances)


def test_a_region_that_ends_on_a_cells_edge_does_not_touch_it():
    outputs = torch.zeros(1, 48, 3), torch.zeros(1, 48, 4)
    target = Instances(SIZE, torch.tensor([[16.0, 16, 32, 32]]), torch.tensor([0]))
    assigned = head_saying(*outputs).assign(GRID, [target], torch.device("cpu"))
    assert assigned.cell.tolist() == [1 * GRID[1] + 1]
    assert assigned.corners.tolist() == [[0, 0, 1, 1]]


def test_detections_hand_worked():
    """The cell at row 1, column 2, [32, 16, 48, 32], and a worse copy of its box from the next."""
    coverage, corners = torch.full((1, 48, 2), -20.0), torch.zeros(1, 48, 4)
    coverage[0, 10, 1], coverage[0, 11, 1] = math.log(9), 0.0
    corners[0, 10] = torch.tensor([-1.0, -0.5, 1.5, 2.0])
    corners[0, 11] = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    head = head_saying(coverage, corners)
    batch = ImageBatch(torch.zeros(1, 3, *SIZE), [(40, 128)])
    (found,) = head.detect(batch, [torch.zeros(1, 1, *GRID)])
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.boxes.tolist() == [[16, 8, 56, 40]]


def test_head_keeps_the_order_of_cells():
    head = CoverageHead(5, 3).eval()
    feature = torch.randn(2, 5, 3, 4)
    coverage, corners = head(feature)
    assert coverage.shape == (2, 12, 3)
    pixel = feature[1, :, 2, 1]
    expected = head.corners.weight[:, :, 0, 0] @ pixel + head.corners.bias
    torch.testing.assert_close(corners[1, 2 * 4 + 1], expected)


class TestGoogLeNet:
    def test_parameters_and_shape(self):
        """Torchvision's 6,624,904 without the last layer of 1024 to 1000."""
        with torch.device("meta"):
            backbone = GoogLeNet()
            maps = backbone(torch.zeros(1, 3, 64, 96))
        assert sum(p.numel() for p in backbone.parameters()) == 6_624_904 - 1_025_000
        assert [m.shape for m in maps] == [(1, 1024, 4, 6)]
        assert (backbone.channels, backbone.strides) == ([1024], [16])

    def test_equal_to_torchvision_without_its_fourth_pooling(self):
        theirs = tv.GoogLeNet(num_classes=7, aux_logits=True, init_weights=False).eval()
        backbone = GoogLeNet().eval()
        backbone.load_classifier(theirs.state_dict())
        theirs.maxpool4 = theirs.avgpool = theirs.fc = nn.Identity()
        x = torch.randn(1, 3, 64, 96)
        with torch.inference_mode():
            (ours,), wanted = backbone(x), theirs(x)
        torch.testing.assert_close(ours.flatten(1), wanted)

    def test_frozen_norm_stays(self):
        backbone = GoogLeNet(norm="frozen").train()
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 57
        assert not any(m.training or m.weight.requires_grad for m in norms)

    def test_wrong_weights_and_norms_are_named(self):
        state = tv.squeezenet1_1(weights=None).state_dict()
        with pytest.raises(ValueError, match=r"not of GoogLeNet: no key conv1"):
            GoogLeNet().load_classifier(state)
        with pytest.raises(ValueError, match="norm must be 'frozen' or 'live', got 'none'"):
            GoogLeNet(norm="none")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return detectnet_googlenet(NUM_CLASSES)


def test_loss_falls(model):
    values = history(model, steps=20)
    assert values[-1] < 0.8 * values[0]
