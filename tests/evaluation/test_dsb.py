import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.evaluation.dsb import IOU_THRESHOLDS, DsbEvaluator
from instseg.ops import rle

Labels = npt.NDArray[np.int64]


def by_loops(prediction: Labels, target: Labels) -> list[Fraction]:
    """One image at each threshold, objects as Python sets and IoU as fractions."""

    def objects(labels: Labels) -> list[set[int]]:
        flat = labels.ravel()
        return [set(np.flatnonzero(flat == i).tolist()) for i in np.unique(flat) if i]

    predicted, true = objects(prediction), objects(target)
    ious = [[Fraction(len(p & t), len(p | t)) for t in true] for p in predicted]
    scores = []
    for k in range(10, 20):
        free = set(range(len(true)))
        for row in ious:
            hit = next((j for j in free if row[j] > Fraction(k, 20)), None)
            if hit is not None:
                free.remove(hit)
        tp = len(true) - len(free)
        union = len(predicted) + len(true) - tp
        scores.append(Fraction(tp, union) if union else Fraction(1))
    return scores


def codes(labels: Labels) -> list[dict[str, Any]]:
    return [rle.encode(labels == i) for i in np.unique(labels) if i]


def ap(prediction: Any, target: Any) -> float:
    evaluator = DsbEvaluator()
    evaluator.update([0], [prediction], [target])
    return evaluator.compute().stats["AP"]


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.0, 0.05, 0.2]))
def test_equals_loops_for_maps_and_codes(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, (3, 3)).repeat(5, axis=0).repeat(4, axis=1)
    other = rng.integers(0, 6, target.shape) * 7  # labels need not be consecutive
    prediction = np.where(rng.random(target.shape) < noise, other, target * 10)
    expected = by_loops(prediction, target)
    forms = [(prediction, target), (codes(prediction), codes(target)), (codes(prediction), target)]
    for predicted, true in forms:
        evaluator = DsbEvaluator()
        evaluator.update([0], [predicted], [true])
        scores = evaluator.compute()
        assert scores.per_threshold == pytest.approx([float(s) for s in expected], abs=1e-14)
        assert scores.stats["AP"] == pytest.approx(float(sum(expected) / 10), abs=1e-14)


def test_hand_worked() -> None:
    target = np.zeros((4, 25), dtype=np.uint16)
    target[0, :20], target[2, :10] = 1, 2
    prediction = np.zeros_like(target)
    prediction[0, :15], prediction[3, :5] = 4, 9  # IoU 15/20 with the first; a false one
    evaluator = DsbEvaluator()
    evaluator.update(["a"], [prediction], [target])
    scores = evaluator.compute()
    # .5, .55, .6, .65, .7: TP 1, FP 1, FN 1. At .75 the IoU is not above the threshold.
    assert scores.per_threshold == pytest.approx([1 / 3] * 5 + [0.0] * 5)
    assert scores.true_positives == (1,) * 5 + (0,) * 5
    assert scores.false_positives == (1,) * 5 + (2,) * 5
    assert scores.false_negatives == (1,) * 5 + (2,) * 5
    assert scores.stats == pytest.approx({"AP": 1 / 6, "AP50": 1 / 3, "AP75": 0.0})
    assert json.loads(json.dumps(scores.to_dict()))["stats"] == scores.stats


@pytest.mark.parametrize("k", range(10, 20))
def test_an_iou_equal_to_a_threshold_is_not_above_it(k: int) -> None:
    target, prediction = np.zeros((2, 1, 40), dtype=np.int64)
    target[0, :20], prediction[0, :k] = 1, 1
    for predicted, true in ((prediction, target), (codes(prediction), codes(target))):
        assert ap(predicted, true) == pytest.approx((k - 10) / 10)
    assert IOU_THRESHOLDS[k - 10] == pytest.approx(k / 20)


def test_images_without_objects() -> None:
    nothing, one = np.zeros((4, 4), dtype=int), np.eye(4, dtype=int)
    assert ap(nothing, nothing) == ap([], []) == ap([], nothing) == 1.0
    assert ap(one, nothing) == ap(codes(one), []) == 0.0
    assert ap(nothing, one) == ap([], codes(one)) == 0.0
    assert ap(one, one) == ap(codes(one), one) == 1.0


def test_the_result_is_a_mean_over_images_not_objects() -> None:
    three, one = np.array([[1, 0, 2, 0, 3]]), np.array([[1, 0, 0, 0, 0]])
    evaluator = DsbEvaluator()
    evaluator.update([1, 2], [np.zeros_like(three), one], [three, one])
    assert evaluator.compute().stats["AP"] == 0.5


def test_overlapping_predictions_of_one_object_count_once() -> None:
    target = np.zeros((5, 5), dtype=np.uint8)
    target[:4, :4] = 1
    less = target.copy()
    less[0, 0] = 0
    evaluator = DsbEvaluator()
    evaluator.update([0], [[rle.encode(target), rle.encode(less)]], [target])
    scores = evaluator.compute()
    assert scores.true_positives == scores.false_positives == (1,) * 10
    assert scores.false_negatives == (0,) * 10


def test_shards_merge_pickle_and_repeated_images_count_once() -> None:
    rng = np.random.default_rng(0)
    targets = [rng.integers(0, 3, (2, 3)).repeat(4, 0).repeat(4, 1) for _ in range(3)]
    predictions = [np.where(rng.random(t.shape) < 0.15, 0, t) for t in targets]
    whole, first, second = DsbEvaluator(), DsbEvaluator(), DsbEvaluator()
    whole.update([0, 1, 2], predictions, targets)
    first.update([0, 1, 0], [predictions[i] for i in (0, 1, 2)], [targets[i] for i in (0, 1, 2)])
    second.update([1, 2], predictions[1:], targets[1:])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == whole.compute()
    whole.reset()
    assert set(whole.compute().stats.values()) == {-1.0}


ONE = np.ones((2, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (-ONE.astype(int), ONE, "prediction holds the label -1"),
        (ONE * 0.5, ONE, "prediction must be a map of integers"),
        (ONE, ONE[:, :2], r"size \[2, 3\] and the target of \[2, 2\]"),
        ([rle.encode(ONE)] * 2, [rle.encode(ONE)] * 2, "objects of the target overlap"),
        ([rle.encode(ONE.T)], [rle.encode(ONE)], r"object 0 of the prediction: .*size is \[3, 2\]"),
        ([{"size": [2, 3], "counts": [1, 2]}], ONE, "object 0 of the prediction: .*runs add up"),
        ([{"size": [2, 3]}], [], "object 0 of the prediction: .*'size' and 'counts'"),
        ([], [{"counts": b"06"}], r"object 0 of the target: key 'size' must be .* got None"),
        ([{"size": [0, 3], "counts": ""}], [], r"key 'size' must be .* got \[0, 3\]"),
    ],
)
def test_bad_objects_name_image_and_object(prediction: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"image 'n': .*{message}"):
        DsbEvaluator().update(["n"], [prediction], [target])


@pytest.mark.real_data
def test_perturbed_truth_of_real_nuclei_equals_loops(real_data: Path) -> None:
    rng = np.random.default_rng(1)
    evaluator, as_codes = DsbEvaluator(), DsbEvaluator()
    expected = []
    index = json.loads((real_data / "dsb2018_256" / "index.json").read_text())
    for entry in index[:50:5]:
        path = real_data / "dsb2018_256" / "labels" / f"{entry['id']}.png"
        target = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int64)
        assert len(np.unique(target)) - 1 == entry["n"]
        prediction = np.roll(target, rng.integers(-2, 3, 2), axis=(0, 1))
        ids = np.unique(target)[1:]
        dropped, joined = rng.choice(ids, max(1, len(ids) // 8)), rng.choice(ids, 2)
        prediction[np.isin(prediction, dropped)] = 0
        prediction[prediction == joined[0]] = joined[1]
        evaluator.update([entry["id"]], [prediction], [target])
        as_codes.update([entry["id"]], [codes(prediction)], [codes(target)])
        expected.append(by_loops(prediction, target))
    means = [float(sum(column) / len(expected)) for column in zip(*expected, strict=True)]
    scores = evaluator.compute()
    assert scores.per_threshold == pytest.approx(means, abs=1e-14)
    assert as_codes.compute() == scores
    assert 0.2 < scores.stats["AP"] < 0.95
