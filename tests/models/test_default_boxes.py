from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from instseg.models.default_boxes import (
    DefaultBoxes,
    DefaultBoxMatcher,
    ssd300_default_boxes,
    ssd512_default_boxes,
    ssdlite320_default_boxes,
)
from instseg.models.matcher import IGNORED, NEGATIVE, POSITIVE
from instseg.ops import box_iou
from instseg.structures import Instances
from tests.contracts.reference import iou

MAPS = {
    300: (ssd300_default_boxes, [38, 19, 10, 5, 3, 1], 8732),
    512: (ssd512_default_boxes, [64, 32, 16, 8, 4, 2, 1], 24564),
    320: (ssdlite320_default_boxes, [20, 10, 5, 3, 2, 1], 3234),
}


def square_maps(sides: list[int]) -> list[tuple[int, int]]:
    return [(s, s) for s in sides]


@pytest.mark.parametrize("size", list(MAPS))
def test_counts(size):
    make, sides, count = MAPS[size]
    assert make()(square_maps(sides), (size, size)).shape == (count, 4)


def test_hand_worked():
    """Two positions 50 apart, squares of 40 and sqrt(40 * 90) = 60, and 2:1 of area 40^2."""
    boxes = DefaultBoxes((100, 100), (0.4, 0.9), [[4.0]], [50])
    expected = [
        [5, 5, 45, 45],
        [-5, -5, 55, 55],
        [-15, 15, 65, 35],
        [15, -15, 35, 65],
        [55, 5, 95, 45],
        [45, -5, 105, 55],
        [35, 15, 115, 35],
        [65, -15, 85, 65],
    ]
    assert torch.allclose(boxes([(1, 2)], (100, 100)), torch.tensor(expected).float(), atol=1e-4)


def test_clipping_limits_the_sides_and_not_the_corners():
    """The box of 1.2 by 0.3 of the image is as wide as it, and still reaches over its border."""
    clipped = DefaultBoxes((100, 100), (0.6, 1.0), [[4.0]], [50])([(1, 1)], (100, 100))
    free = DefaultBoxes((100, 100), (0.6, 1.0), [[4.0]], [50], clip=False)([(1, 1)], (100, 100))
    assert clipped[2].tolist() == pytest.approx([-25, 10, 75, 40], abs=1e-4)
    assert free[2].tolist() == pytest.approx([-35, 10, 85, 40], abs=1e-4)


def plain_boxes(size: int, sides, scales, ratios, steps) -> Tensor:
    """Section 2.2 in float64: w = s sqrt(a), h = s / sqrt(a), and s' = sqrt(s_k s_k+1)."""
    boxes = []
    for k, side in enumerate(sides):
        for i in range(side):
            for j in range(side):
                shapes = [(scales[k], 1.0), (math.sqrt(scales[k] * scales[k + 1]), 1.0)]
                for a in ratios[k]:
                    shapes += [(scales[k], a), (scales[k], 1 / a)]
                for s, a in shapes:
                    w = min(s * math.sqrt(a), 1.0) * size / 2
                    h = min(s / math.sqrt(a), 1.0) * size / 2
                    x, y = (j + 0.5) * steps[k], (i + 0.5) * steps[k]
                    boxes.append([x - w, y - h, x + w, y + h])
    return torch.tensor(boxes, dtype=torch.float64)


def test_ssd512_as_a_plain_loop():
    """The authors' sizes in pixels for COCO: 20.48, then 10 to 90 % of 512 in steps of 16 %."""
    sides = MAPS[512][1]
    pixels = [20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72]
    ratios = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
    expected = plain_boxes(512, sides, [p / 512 for p in pixels], ratios, [512 / s for s in sides])
    got = ssd512_default_boxes()(square_maps(sides), (512, 512))
    assert torch.allclose(got.double(), expected, atol=1e-3)


def test_ssd300_as_a_plain_loop():
    sides = MAPS[300][1]
    scales = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
    ratios = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
    expected = plain_boxes(300, sides, scales, ratios, [8, 16, 32, 64, 100, 300])
    got = ssd300_default_boxes()(square_maps(sides), (300, 300))
    assert torch.allclose(got.double(), expected, atol=1e-3)


THEIRS = {
    300: DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    ),
    320: DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95),
}


@pytest.mark.parametrize("size", list(THEIRS))
def test_torchvisions_to_the_bit(size):
    make, sides, _ = MAPS[size]
    image_list = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
    (expected,) = THEIRS[size](image_list, [torch.zeros(1, 1, s, s) for s in sides])
    assert torch.equal(make()(square_maps(sides), (size, size)), expected)


def test_other_sizes_keep_sizes_and_steps_in_pixels():
    """600 x 450: the map of stride 8 goes on in steps of 8, the last divides the batch evenly."""
    sizes = [(75, 57), (38, 29), (19, 15), (10, 8), (8, 6), (6, 4)]
    boxes = ssd300_default_boxes()(sizes, (600, 450))
    counts = [4, 6, 6, 6, 4, 4]
    assert len(boxes) == sum(h * w * n for (h, w), n in zip(sizes, counts, strict=True))
    first, last = boxes[: 75 * 57 * 4].view(75, 57, 4, 4), boxes[-6 * 4 * 4 :].view(6, 4, 4, 4)
    assert (first[0, 0, 0] - first.new_tensor([-6.5, -6.5, 14.5, 14.5])).abs().max() < 1e-4
    shift = first[74, 56, 0] - first[0, 0, 0]
    assert (shift - shift.new_tensor([56 * 8, 74 * 8] * 2)).abs().max() < 1e-3
    centers = (last[:, :, 0, :2] + last[:, :, 0, 2:]) / 2
    assert centers[:, 0, 1].tolist() == pytest.approx([50, 150, 250, 350, 450, 550], abs=1e-3)
    assert centers[0, :, 0].tolist() == pytest.approx([56.25, 168.75, 281.25, 393.75], abs=1e-3)
    assert (last[0, 0, 0, 2] - last[0, 0, 0, 0]).item() == pytest.approx(0.87 * 300, abs=1e-3)


def test_a_nominal_size_that_is_not_square():
    boxes = DefaultBoxes((100, 200), (0.5, 0.5), [[]], [None])([(1, 1)], (100, 200))
    assert boxes[0].tolist() == pytest.approx([50, 25, 150, 75], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.1, 0.2), [[2], [2]], [8, 16]), "2 maps need 3 scales and 2 steps, got 2 and 2"),
        (((0.1, 0.2, 0.3), [[2], [2]], [8]), "2 maps need 3 scales and 2 steps, got 3 and 1"),
        (((0.1, -0.2), [[2]], [8]), "scales must be positive, got -0.2"),
        (((0.1, 0.2), [[0]], [8]), "aspect_ratios must be positive, got 0"),
        (((0.1, 0.2), [[2]], [0]), "steps must be positive, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DefaultBoxes((100, 100), *arguments)


def test_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match="default boxes are for 6 maps, got 2 maps"):
        ssd300_default_boxes()([(38, 38), (19, 19)], (300, 300))


def objects(*boxes: list[float], crowd: list[bool] | None = None) -> Instances:
    return Instances(
        (100, 100),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.zeros(len(boxes), dtype=torch.int64),
        is_crowd=None if crowd is None else torch.tensor(crowd, dtype=torch.bool),
    )


def test_matching_by_hand():
    """The first object has IoU 0.5 and 1 with two boxes, the second at best 0.25 with the third."""
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 10], [40, 0, 50, 10], [70, 0, 80, 10]])
    targets = objects([0, 0, 10, 10], [40, 0, 45, 5])
    kind, matched = DefaultBoxMatcher()(boxes, targets)
    assert kind.tolist() == [POSITIVE, POSITIVE, POSITIVE, NEGATIVE]
    assert matched.tolist()[:3] == [0, 0, 1]


def test_the_best_box_of_an_object_is_its_own_even_if_another_fits_better():
    """The box has IoU 1 with the first object, and is the only one that overlaps the second."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    kind, matched = DefaultBoxMatcher()(boxes, objects([0, 0, 10, 10], [0, 9, 10, 14]))
    assert kind.tolist() == [POSITIVE, POSITIVE]
    assert matched.tolist() == [1, 0]


def test_the_latest_of_two_objects_with_one_best_box_has_it():
    boxes = torch.tensor([[0.0, 0, 10, 10], [90, 90, 100, 100]])
    _, matched = DefaultBoxMatcher()(boxes, objects([0, 0, 5, 5], [5, 5, 10, 10], [0, 5, 5, 9]))
    assert matched[0] == 2


def test_an_object_that_no_box_overlaps_has_none():
    kind, _ = DefaultBoxMatcher()(torch.tensor([[0.0, 0, 10, 10]]), objects([50, 50, 60, 60]))
    assert kind.tolist() == [NEGATIVE]


@pytest.mark.parametrize(
    "targets", [objects(), objects([0, 0, 90, 90], crowd=[True])], ids=["none", "crowd"]
)
def test_no_objects(targets):
    boxes = torch.tensor([[0.0, 0, 10, 10], [80, 80, 100, 100], [90, 90, 100, 100]])
    kind, _ = DefaultBoxMatcher()(boxes, targets)
    # The second box has a quarter of its area in the crowd, the third none.
    assert kind.tolist() == [IGNORED if len(targets) else NEGATIVE, NEGATIVE, NEGATIVE]


def test_an_object_inside_a_crowd_is_still_found():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 40, 40]])
    targets = objects([0, 0, 50, 50], [21, 21, 30, 30], crowd=[True, False])
    kind, matched = DefaultBoxMatcher()(boxes, targets)
    assert kind.tolist() == [IGNORED, POSITIVE, IGNORED]
    assert matched[1] == 1


def random_objects(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 250
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 90], dim=1)


def test_matching_as_a_plain_loop():
    """Boxes of all sizes, so that rounding decides about no best box."""
    boxes = random_objects(400, 2)
    targets = objects(*random_objects(8, 1).tolist(), crowd=[False] * 6 + [True] * 2)
    table = [[iou(b, g) for g in targets.boxes.tolist()] for b in boxes.tolist()]
    expected = []
    for row, box in zip(table, boxes.tolist(), strict=True):
        best = max(range(6), key=lambda g: row[g])
        kind = POSITIVE if row[best] >= 0.5 else NEGATIVE
        for x1, y1, x2, y2 in targets.boxes[6:].tolist():
            width = max(min(box[2], x2) - max(box[0], x1), 0)
            height = max(min(box[3], y2) - max(box[1], y1), 0)
            share = width * height / ((box[2] - box[0]) * (box[3] - box[1]))
            if kind == NEGATIVE and share >= 0.5:
                kind = IGNORED
        expected.append((kind, best))
    for g in range(6):
        expected[max(range(len(boxes)), key=lambda a: table[a][g])] = (POSITIVE, g)
    kind, matched = DefaultBoxMatcher()(boxes, targets)
    assert kind.tolist() == [k for k, _ in expected]
    assert set(kind.tolist()) == {POSITIVE, NEGATIVE, IGNORED}
    positive = kind == POSITIVE
    assert matched[positive].tolist() == [g for k, g in expected if k == POSITIVE]


@pytest.mark.parametrize("count", [1, 7, 200])
def test_torchvisions_matching(count):
    """With 200 objects, many have a best box in common."""
    boxes = ssd300_default_boxes()(square_maps(MAPS[300][1]), (300, 300))
    gt_boxes = random_objects(count, count)
    reference = SSDMatcher(0.5)(box_iou(gt_boxes, boxes))
    kind, matched = DefaultBoxMatcher()(boxes, objects(*gt_boxes.tolist()))
    assert torch.equal(kind == POSITIVE, reference >= 0)
    assert torch.equal(matched[kind == POSITIVE], reference[reference >= 0])
