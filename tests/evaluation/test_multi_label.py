"""Scores of classes that overlap: each as a binary map of its own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from instseg.evaluation.map_intervals import stat_intervals
from instseg.evaluation.multi_label import MultiLabelEvaluator
from instseg.evaluation.semantic import SemanticEvaluator

NAMES = ["cat", "dog"]


def maps(images: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    truth = [generator.integers(0, 2, (2, 8, 9)) for _ in range(images)]
    predicted = [np.where(generator.random(t.shape) < 0.8, t, 1 - t) for t in truth]
    truth[0][0, :3] = 255
    return predicted, truth


def test_figures_by_hand():
    """Cat: 1 of 2 + 1 pixels; dog: 2 of 2, one pixel unknown."""
    truth = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 255, 0]]])
    predicted = torch.tensor([[[1, 0, 1, 0]], [[1, 1, 1, 0]]])
    evaluator = MultiLabelEvaluator(NAMES)
    evaluator.update([1], [predicted], [truth])
    scores = evaluator.compute()
    assert scores.per_class["cat"]["jaccard"] == pytest.approx(1 / 3)
    assert scores.per_class["cat"]["dice"] == pytest.approx(1 / 2)
    assert scores.per_class["cat"]["pixel_accuracy"] == pytest.approx(1 / 2)
    assert scores.per_class["dog"]["jaccard"] == 1
    assert scores.stats["jaccard"] == pytest.approx(2 / 3)
    assert scores.stats["pixel_accuracy"] == pytest.approx(3 / 4)
    assert scores.images == 1


def test_every_class_is_as_scored_alone():
    predicted, truth = maps(3)
    evaluator = MultiLabelEvaluator(NAMES)
    evaluator.update(range(3), predicted, truth)
    scores = evaluator.compute()
    for k, name in enumerate(NAMES):
        alone = SemanticEvaluator(["background", name])
        alone.update(range(3), [p[k] for p in predicted], [t[k] for t in truth])
        expected = alone.compute()
        own = scores.per_class[name]
        assert own.pop("pixel_accuracy") == expected.stats["pixel_accuracy"]
        assert own == expected.per_class[name]
    assert scores.to_dict()["images"] == 3


def test_parts_merge_and_have_intervals():
    predicted, truth = maps(4)
    whole, first, second = (MultiLabelEvaluator(NAMES) for _ in range(3))
    whole.update(range(4), predicted, truth)
    first.update([0, 1], predicted[:2], truth[:2])
    second.update([1, 2, 3], predicted[1:], truth[1:])
    second.compute()
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == whole.compute()
    interval = stat_intervals(whole)["jaccard"]
    assert 0 < interval.low < whole.compute().stats["jaccard"] < interval.high < 1


def test_nothing_given_is_undefined():
    scores = MultiLabelEvaluator(NAMES).compute()
    assert set(scores.stats.values()) == {-1.0}
    assert scores.images == 0


def test_a_map_for_each_class():
    evaluator = MultiLabelEvaluator(NAMES)
    two, three = np.zeros((2, 4, 4), int), np.zeros((3, 4, 4), int)
    with pytest.raises(ValueError, match=r"image 7: the prediction must be \[2, H, W\].*\[3, 4"):
        evaluator.update([7], [three], [two])
    with pytest.raises(ValueError, match=r"image 7: the target must be \[2, H, W\].*\[4, 4\]"):
        evaluator.update([7], [two], [two[0]])
