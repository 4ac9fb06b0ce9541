"""Thresholds, calibration, confusion, label errors and pictures, worked out by hand."""

import json
import logging
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from instseg.evaluation.reasons import ImageOutcome, find_reasons
from instseg.evaluation.reasons.label_errors import MOST
from instseg.evaluation.reasons.thresholds import Threshold, best_threshold
from tests.evaluation.reasons.sets import (
    Record,
    annotation,
    detection,
    prepared,
    random_set,
    reasons_of,
)

CAT, DOG, COW = 1, 4, 9
A, B, C = [100.0, 100.0, 40.0, 40.0], [300.0, 100.0, 40.0, 40.0], [100.0, 300.0, 40.0, 40.0]


@pytest.mark.parametrize(
    ("scores", "correct", "objects", "expected"),
    [
        ([0.9, 0.8, 0.7], [1, 0, 1], 2, Threshold(0.7, 0.8, 2 / 3, 1.0)),
        # 0.9 alone and all three have F1 2/3: the higher score stands.
        ([0.7, 0.9, 0.8, 0.6], [0, 1, 0, 1], 2, Threshold(0.9, 2 / 3, 1.0, 0.5)),
        # Equal scores cannot be told apart, so the true one brings the false one.
        ([0.5, 0.5], [1, 0], 1, Threshold(0.5, 2 / 3, 0.5, 1.0)),
        ([-3.0], [1], 1, Threshold(-3.0, 1.0, 1.0, 1.0)),
        ([0.9, 0.8], [0, 0], 2, None),
        ([], [], 2, None),
    ],
)
def test_best_threshold(
    scores: list[float], correct: list[int], objects: int, expected: Threshold | None
) -> None:
    best = best_threshold(np.array(scores), np.array(correct, dtype=np.bool_), objects)
    if expected is None:
        assert best is None
    else:
        assert best is not None
        assert astuple(best) == pytest.approx(astuple(expected))


def test_categories_without_a_best_threshold_take_that_of_all() -> None:
    reasons = reasons_of(
        [annotation(1, CAT, A), annotation(1, DOG, B)],
        [detection(1, CAT, 0.6, A), detection(1, DOG, 0.7, C), detection(1, COW, 0.5, C)],
    )
    assert reasons.operating_scores == {"cat": 0.6, "dog": 0.6, "cow": 0.6}
    assert [c.best is None for c in reasons.per_category.values()] == [False, True, True]
    assert reasons.confusion.labels == ["cat", "dog", "cow", "background"]
    assert reasons.confusion.matrix == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_confusion_pairs_what_is_left_over() -> None:
    """Two dogs on a cat and a cow that lie together: the better takes the nearer."""
    moved = [105.0, *A[1:]]
    reasons = reasons_of(
        [annotation(1, CAT, A), annotation(1, COW, moved), annotation(1, DOG, B)],
        [
            detection(1, DOG, 0.9, B),
            detection(1, DOG, 0.8, A),
            detection(1, DOG, 0.9, A),
            detection(1, DOG, 0.9, C),
        ],
    )
    # At 0.9 all but one are kept; the cat is taken, nobody takes the cow.
    assert reasons.operating_scores["dog"] == 0.9
    assert reasons.confusion.matrix == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_confusion_excuses_what_lies_in_a_crowd() -> None:
    reasons = reasons_of(
        [annotation(1, CAT, A), annotation(1, CAT, B, crowd=1)],
        [detection(1, CAT, 0.5, A), detection(1, CAT, 0.9, B), detection(1, CAT, 0.8, B)],
    )
    assert np.array(reasons.confusion.matrix).sum() == reasons.confusion.matrix[0][0] == 1
    assert reasons.per_category["cat"].detections == 3


def test_calibration_by_hand() -> None:
    """0.95 and 0.85 right, 0.85 and 0.15 wrong: gaps 0.05, 0.35 and 0.15 of 1, 2 and 1."""
    calibration = reasons_of(
        [annotation(1, CAT, A), annotation(1, CAT, B)],
        [
            detection(1, CAT, 0.95, A),
            detection(1, CAT, 0.85, B),
            detection(1, CAT, 0.85, C),
            detection(1, CAT, 0.15, [300, 300, 40, 40]),
        ],
    ).calibration
    assert calibration.ece == pytest.approx((0.05 + 2 * 0.35 + 0.15) / 4)
    assert calibration.mce == pytest.approx(0.35)
    bins = [(b.count, b.confidence, b.accuracy) for b in calibration.bins]
    assert bins == [
        (0, 0, 0),
        (1, pytest.approx(0.15), 0),
        *[(0, 0, 0)] * 6,
        (2, pytest.approx(0.85), 0.5),
        (1, pytest.approx(0.95), 1),
    ]


def test_scores_that_are_no_probabilities(caplog: pytest.LogCaptureFixture) -> None:
    found = [detection(1, CAT, s, A) for s in (7.5, -2.0, 0.5)]
    with caplog.at_level(logging.WARNING, "instseg"):
        calibration = reasons_of([annotation(1, CAT, A)], found).calibration
    assert "2 of 3 scores are outside [0, 1]" in caplog.text
    assert [b.count for b in calibration.bins] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert calibration.bins[9].confidence == 7.5


def test_label_errors() -> None:
    """A cat called a cow, an object without an annotation, and detections that say nothing."""
    annotations = [annotation(1, COW, A), annotation(1, CAT, B), annotation(1, DOG, C)]
    far, farther = [300.0, 300.0, 40.0, 40.0], [420.0, 300.0, 40.0, 40.0]
    detections = [
        detection(1, CAT, 0.9, B),
        detection(1, CAT, 0.95, [102.0, *A[1:]]),
        detection(1, COW, 0.97, far),
        detection(1, DOG, 0.96, [302.0, *far[1:]]),  # the same place once more
        detection(1, COW, 0.2, farther),  # not confident
        detection(1, DOG, 0.99, C),
        detection(1, COW, 0.98, C),  # its place is that of a dog, which was found
        detection(1, CAT, 0.93, [320.0, *B[1:]]),  # half beside a cat
    ]
    for image in range(2, 7):  # good enough for thresholds of 0.6
        annotations += [annotation(image, c, b) for c, b in ((CAT, A), (DOG, B), (COW, C))]
        detections += [detection(image, c, 0.6, b) for c, b in ((CAT, A), (DOG, B), (COW, C))]
    errors = reasons_of(annotations, detections, images=6).label_errors
    assert [(e.kind, e.category, e.suggests, e.score) for e in errors] == [
        ("missing", "cow", "cow", 0.97),
        ("wrong label", "cow", "cat", 0.95),
    ]
    assert [e.box for e in errors] == [far, [102.0, *A[1:]]]
    assert errors[0].image_id == 1


def test_label_errors_must_reach_the_threshold_of_their_category() -> None:
    annotations = [annotation(1, CAT, A)]
    false = detection(1, CAT, 0.9, B)
    reached = reasons_of(annotations, [detection(1, CAT, 0.8, A), false])
    assert [e.score for e in reached.label_errors] == [0.9]
    not_reached = reasons_of(annotations, [detection(1, CAT, 0.95, A), false])
    assert not_reached.label_errors == []


def test_a_wrong_label_needs_a_high_iou() -> None:
    """IoU 0.6 is a classification error, but of the detector."""
    reasons = reasons_of([annotation(1, CAT, A)], [detection(1, DOG, 0.9, [110.0, *A[1:]])])
    assert reasons.errors["classification"].count == 1
    assert reasons.label_errors == []


def test_at_most_fifty_label_errors() -> None:
    scores = [0.5 + i / 1000 for i in range(60)]
    found = [detection(i + 1, CAT, s, A) for i, s in enumerate(scores)]
    errors = reasons_of([], found, images=60).label_errors
    assert [e.score for e in errors] == sorted(scores, reverse=True)[:MOST]


def test_pictures() -> None:
    """Ten images: five without a fault, and five with one error each in falling size or score."""
    annotations = [annotation(i, CAT, A) for i in range(1, 10)]
    found = [detection(i, CAT, 0.9, A) for i in range(1, 6)]
    annotations += [annotation(6, CAT, B), annotation(6, DOG, C)]  # image 6: three missed
    found += [detection(7, CAT, 0.95, B), detection(7, CAT, 0.9, A)]  # 7: one false
    found += [detection(8, DOG, 0.99, A)]  # 8: a dog for a cat
    found += [detection(9, CAT, 0.92, [120.0, *A[1:]])]  # 9: half beside
    annotations += [annotation(10, DOG, [10, 10, 200, 200])]  # 10: one missed, the largest
    pictures = reasons_of(annotations, found, images=10).pictures
    shown = [(p.image_id, p.group, p.why, p.error) for p in pictures]
    assert shown == [
        (6, "worst", "3 missed, 0 false, F1 0.00", None),
        (8, "worst", "1 missed, 1 false, F1 0.00", None),
        (9, "worst", "1 missed, 1 false, F1 0.00", None),
        (7, "instructive", "background: cat at score 0.95", "background"),
        (10, "instructive", "missed: dog", "missed"),
    ]
    categories = {p.image_id: p.categories for p in pictures}
    assert categories == {6: ["cat", "dog"], 8: ["cat", "dog"], 9: ["cat"], 7: ["cat"], 10: ["dog"]}
    counts = {p.image_id: (p.tp, p.fp, p.fn, p.f1) for p in pictures}
    assert counts[6] == (0, 0, 3, 0.0)
    assert counts[7] == (1, 1, 0, pytest.approx(2 / 3))


def test_examples_are_in_use() -> None:
    """An error below the threshold is in no picture, so it is no example."""
    annotations = [annotation(1, CAT, A), annotation(2, DOG, B), annotation(3, DOG, B)]
    found = [detection(1, CAT, 0.8, A), detection(1, CAT, 0.1, C)]
    reasons = reasons_of(annotations, found, images=3)
    assert reasons.errors["background"].count == 1
    assert [p.error for p in reasons.pictures] == [None, "missed"]


def test_outcomes_name_records_and_annotations() -> None:
    annotations = [annotation(2, CAT, A), annotation(1, CAT, A), annotation(1, DOG, B)]
    annotations += [annotation(1, CAT, C, crowd=1)]
    found = [
        detection(1, CAT, 0.9, C),  # excused by the crowd
        detection(2, CAT, 0.9, B),
        detection(1, CAT, 0.8, A),
        detection(1, CAT, 0.2, B),  # below the threshold
        detection(2, CAT, 0.8, A),
    ]
    reasons = reasons_of(annotations, found, images=2)
    assert reasons.operating_scores["cat"] == 0.8
    assert reasons.outcomes == {
        1: ImageOutcome(found=[(2, 2)], false=[], missed=[3]),
        2: ImageOutcome(found=[(4, 1)], false=[1], missed=[]),
    }


def test_pictures_have_at_most_two_examples_of_a_type_and_twelve_worst() -> None:
    annotations = [annotation(i, CAT, A) for i in range(1, 31)]
    found = [detection(i, CAT, 0.5 + i / 100, [120.0, *A[1:]]) for i in range(1, 31)]
    gt, dt = prepared(annotations, found, 30)
    for image in gt["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    pictures = find_reasons(gt, dt, "bbox").pictures
    assert [p.image_id for p in pictures] == [*range(1, 13), 30, 29]
    assert pictures[-1].file_name == "29.jpg"
    assert pictures[-1].why == "localisation: cat at score 0.79"


def test_to_dict_is_the_report_s_document() -> None:
    values = reasons_of(
        [annotation(1, CAT, A), annotation(1, COW, B)],
        [detection(1, DOG, 0.9, A), detection(1, COW, 0.8, B), detection(1, CAT, 0.7, C)],
    ).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values) == [
        "curves",
        "errors",
        "calibration",
        "confusion",
        "sizes",
        "crowding",
        "label_errors",
        "pictures",
        "per_category",
    ]
    assert set(values["curves"]) == {"recall", "mean", "categories"}
    assert set(values["curves"]["mean"]) == {"0.50", "0.75", "0.50:0.95"}
    assert values["errors"]["classification"] == {"count": 1, "delta_ap": pytest.approx(0.5)}
    assert set(values["calibration"]) == {"ece", "mce", "bins"}
    assert set(values["calibration"]["bins"][0]) == {
        "low",
        "high",
        "confidence",
        "accuracy",
        "count",
    }
    assert set(values["confusion"]) == {"labels", "matrix"}
    assert set(values["sizes"][0]) == {"name", "objects", "found", "recall", "AP"}
    assert set(values["crowding"][0]) == {"name", "objects", "found", "recall"}
    assert set(values["label_errors"][0]) == {
        "image_id",
        "kind",
        "category",
        "score",
        "suggests",
        "box",
    }
    assert set(values["pictures"][0]) == {
        "image_id",
        "file_name",
        "group",
        "why",
        "tp",
        "fp",
        "fn",
        "f1",
        "error",
        "categories",
    }
    assert values["per_category"]["cow"] == {
        "objects": 1,
        "detections": 1,
        "best": {"score": 0.8, "f1": 1.0, "precision": 1.0, "recall": 1.0},
    }
    assert values["per_category"]["dog"] == {"objects": 0, "detections": 1, "best": None}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("annotations", "detections"),
    [
        ([], []),
        ([annotation(1, CAT, A)], []),
        ([], [detection(1, CAT, 0.9, A)]),
        ([annotation(1, CAT, A, crowd=1)], [detection(1, CAT, 0.9, A)]),
    ],
)
def test_nothing_to_find_or_nothing_found(
    annotations: list[Record], detections: list[Record], iou_type: str
) -> None:
    reasons = reasons_of(annotations, detections, iou_type)
    objects = sum(not a["iscrowd"] for a in annotations)
    assert reasons.crowding[0].objects == objects
    assert reasons.errors["missed"].count == objects
    assert set(reasons.operating_scores.values()) == {-float("inf")}
    assert set(reasons.curves.mean["0.50"]) == {0.0 if objects else -1.0}
    json.dumps(reasons.to_dict(), allow_nan=False)


def test_inputs_stay_as_they_are() -> None:
    gt, dt = random_set(3)
    before = json.dumps([gt, dt])
    find_reasons(gt, dt, "segm")
    assert json.dumps([gt, dt]) == before


@pytest.mark.parametrize("iou_type", ["boundary", "keypoints", ""])
def test_another_iou_type(iou_type: Any) -> None:
    with pytest.raises(ValueError, match=rf"must be one of bbox, segm, got '{iou_type}'"):
        find_reasons(*random_set(0), iou_type)
