"""Everything that can be counted, on random sets with all that COCO treats specially."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instseg.evaluation.ground_truth import load_ground_truth
from instseg.evaluation.reasons import Reasons, find_reasons
from instseg.evaluation.reasons.errors import ErrorType
from instseg.evaluation.results import load_results
from tests.evaluation.reasons import loops
from tests.evaluation.reasons.sets import BOTH, random_set

SEEDS = range(30)


@pytest.fixture(scope="module", params=[(s, t) for s in SEEDS for t in BOTH], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    seed, iou_type = request.param
    gt, dt = random_set(seed)
    guesses, truths = loops.by_pycocotools(gt, dt, iou_type)
    loops.name_errors(guesses, truths)
    return gt, dt, iou_type, find_reasons(gt, dt, iou_type), guesses, truths


Case = tuple[
    dict[str, Any], list[dict[str, Any]], str, Reasons, list[loops.Guess], list[loops.Truth]
]


def names(gt: dict[str, Any]) -> dict[int, str]:
    return {c["id"]: c["name"] for c in sorted(gt["categories"], key=lambda c: c["id"])}


def test_error_counts_and_costs(case: Case) -> None:
    _, _, _, reasons, guesses, truths = case
    counts = loops.name_errors(guesses, truths)
    base = loops.mended_ap(guesses, truths, "")
    assert list(reasons.errors) == [e.name.lower() for e in ErrorType]
    for kind, cost in reasons.errors.items():
        assert cost.count == counts[kind], kind
        mended = loops.mended_ap(guesses, truths, kind)
        assert cost.delta_ap == pytest.approx(mended - base, abs=1e-9), kind


def test_the_base_of_the_costs_is_coco_ap50(case: Case) -> None:
    gt, dt, iou_type, _, guesses, truths = case
    table = loops.precision(gt, dt, iou_type)[0, :, :, 0, -1]
    known = table[table > -1]
    expected = known.mean() if known.size else 0.0
    assert loops.mended_ap(guesses, truths, "") == pytest.approx(expected, abs=1e-9)


def test_best_thresholds(case: Case) -> None:
    gt, dt, _, reasons, guesses, truths = case
    scores = loops.operating_scores(guesses, truths, list(names(gt)))
    assert list(reasons.per_category) == list(names(gt).values())
    for category, name in names(gt).items():
        own = [g for g in guesses if g.category == category]
        objects = sum(t.category == category for t in truths)
        category_reasons = reasons.per_category[name]
        assert category_reasons.objects == objects
        assert category_reasons.detections == sum(d["category_id"] == category for d in dt)
        assert reasons.operating_scores[name] == scores[category]
        expected, best = loops.best_f1(own, objects), category_reasons.best
        assert (best is None) == (expected is None)
        if best and expected:
            assert (best.f1, best.score) == pytest.approx(expected)
            kept = [g for g in own if g.score >= best.score]
            true = sum(g.found is not None for g in kept)
            assert best.precision == pytest.approx(true / len(kept))
            assert best.recall == pytest.approx(true / objects)


def test_confusion(case: Case) -> None:
    gt, _, _, reasons, guesses, truths = case
    assert reasons.confusion.labels == [*names(gt).values(), "background"]
    assert reasons.confusion.matrix == loops.confusion(guesses, truths, list(names(gt)))


def test_calibration(case: Case) -> None:
    *_, reasons, guesses, _ = case
    ece, mce, sizes = loops.calibration(guesses)
    assert reasons.calibration.ece == pytest.approx(ece)
    assert reasons.calibration.mce == pytest.approx(mce)
    assert [b.count for b in reasons.calibration.bins] == sizes
    assert [b.low for b in reasons.calibration.bins] == [i / 10 for i in range(10)]
    assert [b.high for b in reasons.calibration.bins] == [(i + 1) / 10 for i in range(10)]


def test_sizes(case: Case) -> None:
    gt, dt, iou_type, reasons, _, truths = case
    table = loops.precision(gt, dt, iou_type)[0, :, :, :, -1]
    ranges = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
    assert [s.name for s in reasons.sizes] == list(ranges)
    for index, size in enumerate(reasons.sizes, start=1):
        low, high = ranges[size.name]
        own = [t for t in truths if low <= t.area <= high]
        found = sum(t.finder is not None for t in own)
        assert (size.objects, size.found) == (len(own), found)
        assert size.recall == (found / len(own) if own else -1)
        known = table[..., index][table[..., index] > -1]
        ap = known.mean() if known.size else -1
        assert pytest.approx(ap) == size.AP


def test_crowding(case: Case) -> None:
    *_, reasons, _, truths = case
    limits = {"1 object in the image": (1, 1), "2-4": (2, 4), "5-9": (5, 9), "10+": (10, 10**9)}
    assert [c.name for c in reasons.crowding] == list(limits)
    for crowding in reasons.crowding:
        low, high = limits[crowding.name]
        own = [t for t in truths if low <= sum(o.image == t.image for o in truths) <= high]
        found = sum(t.finder is not None for t in own)
        assert (crowding.objects, crowding.found) == (len(own), found)
        assert crowding.recall == (found / len(own) if own else -1)


def test_curves(case: Case) -> None:
    gt, dt, iou_type, reasons, _, _ = case
    table = loops.precision(gt, dt, iou_type)[..., 0, -1]
    known = [k for k in range(table.shape[2]) if table[0, 0, k] > -1]
    curves = reasons.curves
    assert curves.recall == pytest.approx(np.linspace(0, 1, 101))
    for name, rows in {"0.50": [0], "0.75": [5], "0.50:0.95": list(range(10))}.items():
        expected = np.full(101, -1.0)
        if known:
            expected = np.array([[table[t][:, k] for t in rows] for k in known]).mean(axis=(0, 1))
        assert curves.mean[name] == pytest.approx(expected)
    assert list(curves.categories) == [list(names(gt).values())[k] for k in known]
    for k, curve in zip(known, curves.categories.values(), strict=True):
        assert curve == pytest.approx(table[0, :, k])


def test_pictures_count_at_the_operating_scores(case: Case) -> None:
    gt, _, _, reasons, guesses, truths = case
    scores = loops.operating_scores(guesses, truths, list(names(gt)))
    kept = [g for g in guesses if g.score >= scores[g.category]]
    quality = {}
    for image in (i["id"] for i in gt["images"]):
        tp = sum(g.image == image and g.found is not None for g in kept)
        fp = sum(g.image == image and g.found is None for g in kept)
        fn = sum(t.image == image for t in truths) - tp
        quality[image] = tp, fp, fn, 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
    shown = [p.image_id for p in reasons.pictures]
    assert len(shown) == len(set(shown)) <= 24
    for picture in reasons.pictures:
        assert (picture.tp, picture.fp, picture.fn, picture.f1) == quality[picture.image_id]
        outcome = reasons.outcomes[picture.image_id]
        counts = len(outcome.found), len(outcome.false), len(outcome.missed)
        assert counts == quality[picture.image_id][:3]
        errors = Counter(g.category for g in kept if (g.image, g.found) == (picture.image_id, None))
        errors.update(
            t.category
            for t in truths
            if t.image == picture.image_id and (t.finder is None or t.finder not in kept)
        )
        most_first = sorted(errors, key=lambda category: (-errors[category], category))
        assert picture.categories == [names(gt)[category] for category in most_first]
    faulty = [i for i, (_, fp, fn, _) in quality.items() if fp or fn]
    worst = [quality[p.image_id][3] for p in reasons.pictures if p.group == "worst"]
    assert worst == sorted(quality[i][3] for i in faulty)[: min(12, -(-len(faulty) // 2))]


def test_the_random_sets_have_all_that_is_special() -> None:
    total = dict.fromkeys((e.name.lower() for e in ErrorType), 0)
    crowded = polygons = too_many = without_objects = 0
    for seed in SEEDS:
        gt, dt = random_set(seed)
        for kind, cost in find_reasons(gt, dt, "segm").errors.items():
            total[kind] += cost.count
        crowded += any(a["iscrowd"] for a in gt["annotations"])
        polygons += any(isinstance(a["segmentation"], list) for a in gt["annotations"])
        too_many += len(dt) > 110
        without_objects += len({a["image_id"] for a in gt["annotations"]}) < len(gt["images"])
    assert min(total.values()) >= 10, total
    assert min(crowded, polygons, too_many, without_objects) >= 3


@pytest.mark.real_data
@pytest.mark.parametrize("iou_type", BOTH)
def test_error_counts_on_real_images(real_data: Path, iou_type: str) -> None:
    gold = real_data / "coco_gold"
    gt = load_ground_truth(gold / "instances_val2014_100.json", BOTH)
    dt = load_results(gold / "instances_val2014_fakesegm100_results.json", gt, BOTH)
    reasons = find_reasons(gt, dt, iou_type)
    guesses, truths = loops.by_pycocotools(gt, dt, iou_type)
    counts = loops.name_errors(guesses, truths)
    assert {kind: cost.count for kind, cost in reasons.errors.items()} == {
        kind: counts[kind] for kind in reasons.errors
    }
    assert counts["correct"] > 100
    categories = sorted(c["id"] for c in gt["categories"])
    assert reasons.confusion.matrix == loops.confusion(guesses, truths, categories)
