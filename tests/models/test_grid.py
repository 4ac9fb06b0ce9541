from __future__ import annotations

import pytest
import torch

from instseg.models.detection.grid import (
    Objects,
    cell_corners,
    cells_of,
    gather_objects,
    in_crowd,
    last_of_each,
    select_detections,
)
from instseg.structures import Instances

from .grid_reference import objects_of, scene


def objects(boxes: list[list[float]], images: list[int]) -> Objects:
    return Objects(torch.tensor(images), torch.tensor(boxes), torch.zeros(len(boxes)).long())


def test_cells_row_by_row():
    assert cell_corners((2, 3), torch.device("cpu")).tolist() == [
        *[[0, 0], [1, 0], [2, 0]],
        *[[0, 1], [1, 1], [2, 1]],
    ]


def test_cells_of_centres_inside_on_edges_and_beyond():
    """A grid of 2 rows and 3 columns of 10 x 20 pixels; centres (15, 30), (10, 20), beyond."""
    boxes = [[10.0, 25, 20, 35], [5, 15, 15, 25], [20, 30, 40, 50], [-30, -30, -10, -10]]
    cell, offset = cells_of(objects(boxes, [0, 1, 1, 2]), (2, 3), torch.tensor([10.0, 20]))
    assert cell.tolist() == [4, 6 + 4, 6 + 5, 12]
    assert offset.tolist() == [[0.5, 0.5], [0, 0], [1, 1], [0, 0]]


def test_the_last_gets_the_slot():
    owners = last_of_each(torch.tensor([4, 1, 4, 0, 1]), 6)
    assert owners.tolist() == [3, 4, 2]
    assert last_of_each(torch.zeros(0, dtype=torch.int64), 6).tolist() == []


def test_gathered_objects_are_those_of_a_loop():
    found = gather_objects(scene(), torch.device("cpu"))
    expected = [(i, *o) for i, target in enumerate(scene()) for o in objects_of(target)[0]]
    assert found.image.tolist() == [i for i, _, _ in expected]
    assert found.boxes.tolist() == [pytest.approx(box) for _, box, _ in expected]
    assert found.labels.tolist() == [label for _, _, label in expected]


def test_in_crowd_from_half_of_the_area():
    target = Instances(
        (50, 50),
        torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]),
        torch.tensor([0, 0]),
        is_crowd=torch.tensor([True, False]),
    )
    boxes = torch.tensor([[5.0, 0, 15, 10], [5.1, 0, 15.1, 10], [20, 20, 30, 30]])
    inside = in_crowd(boxes.expand(2, -1, -1), [target, Instances.empty((50, 50))])
    assert inside.tolist() == [[True, False, False], [False, False, False]]


def test_only_the_best_candidates_of_each_image_go_on():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]).expand(2, -1, -1)
    scores = torch.tensor([[[0.9, 0.1], [0.2, 0.6], [0.5, 0]], [[0.0, 0], [0, 0.3], [0.4, 0.1]]])
    limits = {"nms_threshold": 0.5, "max_detections": 2}
    first, second = select_detections(
        boxes, scores, [(45, 60)] * 2, score_threshold=0.1, max_candidates=3, **limits
    )
    assert first.scores.tolist() == pytest.approx([0.9, 0.6])
    assert first.labels.tolist() == [0, 1]
    assert second.scores.tolist() == pytest.approx([0.4, 0.3])
    assert second.labels.tolist() == [0, 1]
    assert second.boxes.tolist() == [[40, 40, 50, 45], [20, 20, 30, 30]]
    (alone, _) = select_detections(
        boxes, scores, [(45, 60)] * 2, score_threshold=0.1, max_candidates=1, **limits
    )
    assert len(alone) == 1
