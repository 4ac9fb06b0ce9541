"""Replicates against images that are really repeated, and what follows from them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from instseg.evaluation.bootstrap import (
    Replicates,
    draw_weights,
    interval,
    p_value,
    replicate,
)
from instseg.evaluation.coco import evaluate_results, match_records
from instseg.evaluation.ground_truth import prepare_ground_truth
from instseg.evaluation.params import CocoParams, metrics_of
from instseg.evaluation.results import check_results
from instseg.evaluation.scores import BootstrapOptions, category_replicates, mean_of_known

from .test_backends import random_sets

BOTH = ("bbox", "segm")


def figures(replicates: Replicates, params: CocoParams) -> dict[str, np.ndarray]:
    return {
        m.name: mean_of_known(category_replicates(m, replicates, params), axis=1)
        for m in metrics_of(params)
    }


def replicates_of(
    truth: dict[str, Any], found: list[dict[str, Any]], iou_type: str, weights: np.ndarray
) -> dict[str, np.ndarray]:
    params = CocoParams()
    prepared = prepare_ground_truth(truth, BOTH)
    matches = match_records(prepared, check_results(found, prepared, BOTH), iou_type, params)
    return figures(replicate(matches, params, len(truth["categories"]), weights), params)


def without_ties(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Equal scores have no order among repeated images."""
    truth, found = random_sets(seed)
    scores = np.random.default_rng(seed).permutation(len(found)) / max(len(found), 1)
    return truth, [f | {"score": float(s)} for f, s in zip(found, scores, strict=True)]


def repeated(
    truth: dict[str, Any], found: list[dict[str, Any]], weights: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data set that holds each image as often as ``weights`` says, under new ids."""
    new: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
    records = []
    for position, image in enumerate(sorted(truth["images"], key=lambda i: i["id"])):
        for _ in range(weights[position]):
            number = len(new["images"])
            new["images"].append(image | {"id": number})
            for a in truth["annotations"]:
                if a["image_id"] == image["id"]:
                    own = {"id": len(new["annotations"]), "image_id": number}
                    new["annotations"].append(a | own)
            records += [r | {"image_id": number} for r in found if r["image_id"] == image["id"]]
    return new, records


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("iou_type", BOTH)
def test_replicates_are_scores_of_repeated_images(seed: int, iou_type: str) -> None:
    truth, found = without_ties(seed)
    weights = draw_weights(len(truth["images"]), 4, seed)
    got = replicates_of(truth, found, iou_type, weights)
    none = BootstrapOptions(replicates=0)
    for b in range(weights.shape[1]):
        drawn = repeated(copy.deepcopy(truth), found, weights[:, b])
        expected = evaluate_results(*drawn, (iou_type,), "pycocotools", intervals=none)
        for name, value in expected[iou_type].stats.items():
            if value == -1:
                assert np.isnan(got[name][b])
            else:
                assert got[name][b] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(12))
def test_every_image_once_is_the_set_itself(seed: int) -> None:
    truth, found = random_sets(seed)
    got = replicates_of(truth, found, "bbox", np.ones((len(truth["images"]), 1), np.int32))
    expected = evaluate_results(truth, found, ("bbox",), intervals=BootstrapOptions(0))["bbox"]
    assert [v[0] for v in got.values()] == pytest.approx(
        [np.nan if v == -1 else v for v in expected.stats.values()], abs=1e-12, nan_ok=True
    )
    assert expected.intervals == {}


def test_weights_draw_as_many_images_as_there_are() -> None:
    weights = draw_weights(50, 400, 3)
    assert weights.shape == (50, 400)
    assert (weights.sum(axis=0) == 50).all()
    assert weights.mean(axis=1) == pytest.approx(1, abs=0.25)
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # binomial
    assert (weights == draw_weights(50, 400, 3)).all()
    assert (weights != draw_weights(50, 400, 4)).any()


def test_interval_by_hand() -> None:
    replicates = np.array([0.4, 0.6, np.nan, 0.5])  # standard deviation 0.1
    found = interval(0.5, replicates, 0.95)
    assert (found.low, found.high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-4)
    clipped = interval(0.9, replicates, 0.95)
    assert clipped.low == pytest.approx(0.704, abs=1e-4)
    assert clipped.high == 1
    assert interval(-1.0, replicates).low is None
    assert interval(0.5, np.array([0.4, np.nan])).low is None


def test_one_image_says_nothing_of_how_figures_vary() -> None:
    truth, found = random_sets(4)
    first, second = sorted({a["image_id"] for a in truth["annotations"]})[:2]
    for annotation in truth["annotations"]:
        rare = annotation["category_id"] == 3
        annotation["image_id"] = first if rare else annotation["image_id"]
    scores = evaluate_results(truth, found, ("bbox",))["bbox"]
    assert scores.per_category["c3"]["AP"] >= 0
    assert scores.category_intervals["c3"]["AP"].low is None
    assert scores.intervals["AP"].low is not None
    for annotation in truth["annotations"]:
        annotation["image_id"] = second
    scores = evaluate_results(truth, found, ("bbox",))["bbox"]
    assert scores.intervals["AP"].low is None
    assert interval(0.5, np.array([0.4, 0.6]), images=1).high is None


def test_p_value_by_hand() -> None:
    replicates = np.array([0.0, 0.1, 0.2])  # standard deviation 0.1
    assert p_value(0.196, replicates) == pytest.approx(0.05, abs=1e-4)
    assert p_value(-0.196, replicates) == pytest.approx(0.05, abs=1e-4)
    assert p_value(0.0, replicates) == 1
    assert p_value(0.0, np.zeros(5)) == 1
    assert p_value(0.1, np.full(5, 0.1)) is None
    assert p_value(0.1, np.array([np.nan, 0.1])) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [({"replicates": 1}, "replicates must be 0 or"), ({"confidence": 1.0}, "confidence must lie")],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BootstrapOptions(**options)


def test_scores_carry_intervals() -> None:
    truth, found = random_sets(4)
    scores = evaluate_results(truth, found, ("bbox",))["bbox"]
    assert scores.intervals.keys() == scores.stats.keys()
    assert scores.category_intervals.keys() == scores.per_category.keys()
    for name, value in scores.stats.items():
        own = scores.intervals[name]
        assert own.value == value
        assert value == -1 or own.low is None or own.low <= value <= own.high
    narrow = evaluate_results(truth, found, ("bbox",), intervals=BootstrapOptions(confidence=0.5))
    wide, tight = scores.intervals["AP"], narrow["bbox"].intervals["AP"]
    assert wide.low < tight.low < tight.high < wide.high
