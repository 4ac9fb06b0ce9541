"""Class maps: what they refuse, labels by threshold, and how they follow an image's size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.structures import IGNORE, SemanticMap


def byte(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": torch.zeros(2, 3)}, r"labels must be uint8 .* got torch.float32 \[2, 3\]"),
        ({"labels": torch.zeros(3, dtype=torch.uint8)}, r"got torch.uint8 \[3\]"),
        ({"labels": torch.zeros(0, 3, dtype=torch.uint8)}, r"got torch.uint8 \[0, 3\]"),
        ({"scores": torch.zeros(2, 2, 4)}, r"scores must be floating \['C', 2, 3\], got .*2, 2, 4"),
        ({"scores": torch.zeros(2, 3)}, r"scores must be floating"),
        ({"scores": torch.zeros(2, 2, 3).long()}, r"scores must be floating.*got torch.int64"),
        ({"weights": torch.zeros(3, 2)}, r"weights must be floating \[2, 3\], got .*\[3, 2\]"),
        ({"weights": torch.zeros(2, 3).int()}, r"weights must be floating.*got torch.int32"),
    ],
)
def test_fields_that_contradict_each_other(fields, message):
    with pytest.raises(ValueError, match=message):
        SemanticMap(**{"labels": torch.zeros(2, 3, dtype=torch.uint8), **fields})


def test_overlapping_classes_have_a_score_each():
    labels = torch.zeros(2, 2, 3, dtype=torch.uint8)
    assert SemanticMap(labels, torch.zeros(2, 2, 3)).is_multi_label
    with pytest.raises(ValueError, match=r"scores must be floating \[2, 2, 3\], got .*\[1, 2, 3\]"):
        SemanticMap(labels, torch.zeros(1, 2, 3))


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.5, [0, 1, 1, 1]), (0.25, [1, 1, 1, 1]), (0.9, [0, 0, 0, 1])]
)
def test_the_second_of_two_classes_by_its_threshold(threshold, expected):
    foreground = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    found = SemanticMap.exclusive(torch.stack([1 - foreground, foreground]), threshold)
    assert found.labels.dtype == torch.uint8
    assert found.labels.tolist() == [expected]
    assert found.threshold == threshold
    assert not found.is_multi_label


def test_the_best_of_three_classes_whatever_the_threshold():
    scores = torch.tensor([[[0.4, 0.2]], [[0.35, 0.2]], [[0.25, 0.6]]])
    assert SemanticMap.exclusive(scores, 0.9).labels.tolist() == [[0, 2]]


def test_classes_that_overlap_each_by_the_threshold():
    scores = torch.tensor([[[0.2, 0.8]], [[0.3, 0.9]]])
    found = SemanticMap.multi_label(scores, 0.3)
    assert found.labels.tolist() == [[[0, 1]], [[1, 1]]]
    assert found.threshold == 0.3
    assert found.is_multi_label


def test_classes_that_overlap_each_by_its_own_threshold():
    scores = torch.tensor([[[0.25, 0.75]], [[0.25, 0.75]]])
    found = SemanticMap.multi_label(scores, (0.25, 0.8))
    assert found.labels.tolist() == [[[1, 1]], [[0, 0]]]
    larger = found.resized((1, 4))
    assert larger.threshold == (0.25, 0.8)
    assert larger.labels.tolist() == [[[1] * 4], [[0] * 4]]


def test_thresholds_that_do_not_fit():
    scores = torch.rand(2, 3, 4)
    with pytest.raises(ValueError, match="1 thresholds for 2 classes"):
        SemanticMap.multi_label(scores, (0.5,))
    with pytest.raises(ValueError, match=r"have one threshold, got \(0.5, 0.5\)"):
        SemanticMap.exclusive(scores, (0.5, 0.5))


def test_truth_takes_the_nearest_pixel():
    """Twice as large each pixel is four; a third as large the middle one of nine is left."""
    labels = byte([[0, 1, IGNORE], [2, 3, 4]])
    weights = torch.arange(6.0).reshape(2, 3)
    found = SemanticMap(labels, weights=weights).resized((4, 6))
    assert torch.equal(found.labels, labels.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(found.weights, weights.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert found.image_size == (4, 6)
    small = found.resized((2, 3))
    assert torch.equal(small.labels, labels)
    nine = byte([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert SemanticMap(nine).resized((1, 1)).labels.tolist() == [[5]]


def test_overlapping_truth_keeps_its_maps():
    labels = byte([[[0, 1]], [[1, IGNORE]]])
    found = SemanticMap(labels).resized((2, 4))
    assert found.is_multi_label
    assert found.labels.tolist() == [[[0, 0, 1, 1]] * 2, [[1, 1, IGNORE, IGNORE]] * 2]


def test_predictions_follow_their_scores():
    """Labels are not resized, but found anew: with the map's own threshold."""
    foreground = torch.tensor([[0.0, 1.0]])
    semantic = SemanticMap.exclusive(torch.stack([1 - foreground, foreground]), 0.7)
    found = semantic.resized((1, 4))
    # Bilinear, half-pixel centres: a quarter of the way between the pixels' centres each.
    assert found.scores[1].tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert found.labels.tolist() == [[0, 0, 1, 1]]
    assert found.threshold == 0.7
    assert found.resized((1, 4)) is found


def test_smaller_predictions_are_antialiased():
    scores = torch.rand(2, 6, 8)
    found = SemanticMap.multi_label(scores, 0.4).resized((3, 4))
    expected = F.interpolate(scores[None], (3, 4), mode="bilinear", antialias=True)[0]
    assert torch.allclose(found.scores, expected)
    assert torch.equal(found.labels, (found.scores >= 0.4).to(torch.uint8))
    assert found.is_multi_label
    assert found.threshold == 0.4


def test_to_a_device_takes_all():
    semantic = SemanticMap(byte([[0, 1]]), torch.zeros(2, 1, 2), torch.ones(1, 2), threshold=0.25)
    moved = semantic.to("meta")
    assert moved.labels.is_meta
    assert moved.scores.is_meta
    assert moved.weights.is_meta
    assert moved.threshold == 0.25
