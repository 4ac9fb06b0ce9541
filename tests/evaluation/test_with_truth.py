"""Evaluators of maps as the engine calls them, with the truth looked up."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from instseg.evaluation.semantic import SemanticEvaluator
from instseg.evaluation.threshold import ThresholdEvaluator
from instseg.evaluation.with_truth import Scorer, TruthEvaluator

GENERATOR = np.random.default_rng(3)
TRUTH = {i: GENERATOR.integers(0, 2, (6, 8)) for i in range(5)}
SCORES = {i: GENERATOR.random((6, 8)) for i in range(5)}


def evaluator(truth=TRUTH.__getitem__, *, kinds=("semantic", "threshold")) -> TruthEvaluator:
    scorers = {
        "semantic": Scorer(SemanticEvaluator(2), lambda p: (p >= 0.5).astype(int), lambda t: t),
        "threshold": Scorer(ThresholdEvaluator(), lambda p: p, lambda t: t),
    }
    return TruthEvaluator({kind: scorers[kind] for kind in kinds}, truth)


def given(*image_ids: int, **options) -> TruthEvaluator:
    filled = evaluator(**options)
    filled.update(image_ids, [SCORES[i] for i in image_ids])
    return filled


def by_hand(*image_ids: int) -> tuple[dict[str, float], dict[str, float]]:
    """Pixel accuracy and area under the curve of the images' pixels together."""
    truth = np.concatenate([TRUTH[i].ravel() for i in image_ids])
    scores = np.concatenate([SCORES[i].ravel() for i in image_ids])
    wins = [float(p > n) for p in scores[truth == 1] for n in scores[truth == 0]]
    return np.mean((scores >= 0.5) == truth), np.mean(wins)


def check(scored: TruthEvaluator, *image_ids: int) -> None:
    scores = scored.compute()
    accuracy, area = by_hand(*image_ids)
    assert scores["semantic"].stats["pixel_accuracy"] == pytest.approx(accuracy)
    # A bin of 1/1024 holds few pairs that this takes for equal.
    assert scores["threshold"].stats["auc"] == pytest.approx(area, abs=2e-3)
    assert scores["semantic"].images == scores["threshold"].images == len(image_ids)


def test_each_kind_gets_its_part_of_prediction_and_truth():
    check(given(0, 1, 2), 0, 1, 2)


def test_the_truth_is_looked_up_by_image_once():
    asked = []

    def truth(image_id: int) -> np.ndarray:
        asked.append(image_id)
        return TRUTH[image_id]

    given(3, 1, truth=truth)
    assert asked == [3, 1]


def test_an_image_that_comes_twice_counts_once():
    scored = given(0, 1)
    scored.update([1, 2], [1 - SCORES[1], SCORES[2]])
    check(scored, 0, 1, 2)


def test_reset_forgets_all():
    scored = given(0, 1)
    scored.reset()
    assert scored.compute()["semantic"].images == 0
    scored.update([2], [SCORES[2]])
    check(scored, 2)


def test_parts_of_several_processes_merge_as_pickles_without_the_truth():
    """A sampler that pads gives one image to both processes."""
    first, second = given(0, 2, 4), given(1, 3, 0)
    data = pickle.dumps(second)
    assert len(data) < len(pickle.dumps(TRUTH)) + 3000
    first.merge(pickle.loads(data))
    check(first, 0, 1, 2, 3, 4)
    # What came as a pickle knows no truth, and so takes no more images.
    with pytest.raises(AttributeError):
        pickle.loads(data).update([4], [SCORES[4]])


def test_other_kinds_do_not_merge():
    with pytest.raises(ValueError, match=r"same kinds merge: \['semantic', 'threshold'\] and \['s"):
        given(0).merge(given(1, kinds=("semantic",)))


def test_an_image_that_cannot_be_scored_is_named():
    scored = evaluator()
    with pytest.raises(ValueError, match=r"image 4: the prediction is of size \[2, 2\]"):
        scored.update([4], [np.zeros((2, 2))])


def test_there_is_a_prediction_for_each_image():
    with pytest.raises(ValueError, match="shorter"):
        evaluator().update([0, 1], [SCORES[0]])
