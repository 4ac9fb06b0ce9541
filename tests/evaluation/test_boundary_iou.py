"""Boundary IoU against distances measured pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from instseg.evaluation import boundary_iou
from instseg.evaluation.boundary_iou import boundary_region
from instseg.evaluation.coco import CocoEvaluator, evaluate_results, match_records
from instseg.evaluation.ground_truth import prepare_ground_truth
from instseg.evaluation.params import CocoParams
from instseg.evaluation.results import check_results
from instseg.ops import rle

from .test_backends import random_sets
from .test_coco import CATEGORY_IDS, disc_predictions, disc_truth


def boundary_by_definition(mask: np.ndarray) -> np.ndarray:
    """Mask pixels that have a pixel outside the mask within d, by chessboard distance."""
    height, width = mask.shape
    d = max(1, round(0.02 * math.hypot(height, width)))
    result = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        for v in range(y - d, y + d + 1):
            for u in range(x - d, x + d + 1):
                if not (0 <= v < height and 0 <= u < width) or not mask[v, u]:
                    result[y, x] = True
    return result


def random_mask(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    for _ in range(3):
        y, x = rng.integers(0, 50), rng.integers(0, 70)
        mask[y : y + rng.integers(3, 30), x : x + rng.integers(3, 30)] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_region_is_what_lies_near_the_contour(seed: int) -> None:
    mask = random_mask(np.random.default_rng(seed))
    region = boundary_region(rle.encode(mask))
    whole = np.zeros_like(mask)
    h, w = region.pixels.shape
    whole[region.top : region.top + h, region.left : region.left + w] = region.pixels
    assert (whole == boundary_by_definition(mask)).all()


def truth_and_records(masks: list[np.ndarray], crowd: bool = False) -> tuple[Any, Any]:
    first, second = (
        {"size": list(m.shape), "counts": rle.encode(m)["counts"].decode()} for m in masks
    )
    height, width = masks[0].shape
    truth = {
        "images": [{"id": 1, "height": height, "width": width}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": int(crowd),
             "area": int(masks[0].sum()), "segmentation": first}
        ],
    }  # fmt: skip
    return truth, [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": second}]


@pytest.mark.parametrize("side", range(1, 12))
def test_regions_of_all_sides(side: int) -> None:
    """Around twice the distance of 2, where first nothing is left of the inside."""
    mask = np.zeros((60, 80), bool)
    mask[7 : 7 + side, 20:50] = True
    region = boundary_region(rle.encode(mask))
    assert (region.pixels == boundary_by_definition(mask)[7 : 7 + side, 20:50]).all()


def test_regions_that_do_not_fit_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made again, and the figures stay."""
    truth, found = random_sets(7)
    expected = evaluate_results(truth, found, ("boundary",))["boundary"].stats
    monkeypatch.setattr(boundary_iou, "MAX_PIXELS", 300)
    assert evaluate_results(truth, found, ("boundary",))["boundary"].stats == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_smaller_of_both_ious_decides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = random_mask(rng)
    shift = rng.integers(-2, 3, size=2)
    guess = np.roll(target, shift, (0, 1)) if seed % 4 else target
    mask_iou = (target & guess).sum() / (target | guess).sum()
    a, b = boundary_by_definition(target), boundary_by_definition(guess)
    expected = min(mask_iou, (a & b).sum() / (a | b).sum())

    thresholds = tuple(np.linspace(0.02, 1, 50))
    params = CocoParams(iou_thresholds=thresholds)
    truth, records = truth_and_records([target, guess])
    prepared = prepare_ground_truth(truth, ("segm",))
    checked = check_results(records, prepared, ("segm",))
    matches = match_records(prepared, checked, "boundary", params)
    found = matches.found[0, :, 0]
    assert found.tolist() == [t <= expected + 1e-9 for t in thresholds]


def test_scores_of_boundaries_are_stricter_than_of_masks() -> None:
    truth, found = random_sets(7)
    scores = evaluate_results(truth, found, ("segm", "boundary"))
    assert 0 < scores["boundary"].stats["AP"] < scores["segm"].stats["AP"]
    for backend in ("hotcoco", "pycocotools"):  # they know no boundaries: ours are taken
        other = evaluate_results(truth, found, ("boundary",), backend)["boundary"]
        assert other.stats == scores["boundary"].stats


def test_a_crowd_takes_detections_inside_it() -> None:
    target = np.zeros((60, 80), bool)
    target[10:50, 10:70] = True
    guess = np.zeros_like(target)
    guess[10:50, 10:30] = True  # inside the crowd and along three of its sides
    truth, records = truth_and_records([target, guess], crowd=True)
    prepared = prepare_ground_truth(truth, ("segm",))
    matches = match_records(
        prepared, check_results(records, prepared, ("segm",)), "boundary", CocoParams()
    )
    d = round(0.02 * 100)
    ring = 40 * 20 - (40 - 2 * d) * (20 - 2 * d)
    inside = ring - (40 - 2 * d) * d  # its right side is no contour of the crowd
    assert matches.found[0, :, 0].tolist() == [
        t <= inside / ring for t in CocoParams().iou_thresholds
    ]
    assert matches.ignored[0, 0, 0]


def test_the_evaluator_scores_boundaries() -> None:
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS, iou_types=("boundary",))
    for image_id in (8, 9, 10):
        evaluator.update([image_id], [disc_predictions(image_id)])
    assert evaluator.compute()["boundary"].stats["AP"] == pytest.approx(1, abs=1e-12)
