"""LVIS scores against a loop written from the definition, and by hand."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.evaluation.ground_truth import GroundTruthError
from instseg.evaluation.lvis import METRIC_NAMES, LvisEvaluator, LvisScores, evaluate_lvis
from instseg.evaluation.results import ResultsError
from instseg.ops import rle
from tests.evaluation.test_collector import instances_of

SIZE = (150, 180)
IOU_TYPES = ("bbox", "segm")
Record = dict[str, Any]


def shaped(box: list[int], **more: Any) -> Record:
    """A rectangle as box and mask; a box without area has an empty mask."""
    x, y, w, h = box
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + h, x : x + w] = 1
    code = {"size": list(SIZE), "counts": rle.encode(mask)["counts"].decode()}
    return {"image_id": 1, "category_id": 1, "bbox": box, "segmentation": code, **more}


def truth_of(
    *objects: Record,
    negative: dict[int, list[int]] | None = None,
    inexhaustive: dict[int, list[int]] | None = None,
    images: int = 2,
    frequencies: str = "rcf",
) -> Record:
    """LVIS's format: no ``iscrowd``; ``negative`` and ``inexhaustive`` by image id."""
    return {
        "images": [
            {
                "id": i,
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": (negative or {}).get(i, []),
                "not_exhaustive_category_ids": (inexhaustive or {}).get(i, []),
            }
            for i in range(1, images + 1)
        ],
        "categories": [
            {"id": i, "name": f"c{i}", "frequency": f} for i, f in enumerate(frequencies, start=1)
        ],
        "annotations": [
            {"id": i, "area": o["bbox"][2] * o["bbox"][3], **o}
            for i, o in enumerate(objects, start=1)
        ],
    }


# The definition.

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def box_iou(a: Record, b: Record) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
    w, h = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    return w * h / (aw * ah + bw * bh - w * h) if w > 0 and h > 0 else 0.0


def bitmap_iou(a: Record, b: Record) -> float:
    first, second = a["bitmap"], b["bitmap"]
    return float((first & second).sum() / (first | second).sum())


def by_definition(truth: Record, found: list[Record], iou_type: str) -> dict[str, float]:
    """LVIS's thirteen numbers."""
    objects, found = ([with_size(r, iou_type) for r in rs] for rs in (truth["annotations"], found))
    found = evaluated(truth, objects, found)
    iou = box_iou if iou_type == "bbox" else bitmap_iou
    stats: dict[str, list[float]] = {name: [] for name in METRIC_NAMES}
    for category in truth["categories"]:
        for area, limits in AREAS.items():
            for threshold in THRESHOLDS:
                outcome = matched(truth, objects, found, category["id"], limits, threshold, iou)
                if outcome is None:
                    continue
                precision, recall = outcome
                stats[f"AP{area}"] += precision
                stats["AR300" if area == "" else f"AR{area}"].append(recall)
                if area == "":
                    stats[f"AP{category['frequency']}"] += precision
                    for name, value in (("AP50", 0.5), ("AP75", 0.75)):
                        stats[name] += precision if abs(threshold - value) < 1e-9 else []
    return {name: float(np.mean(v)) if v else -1.0 for name, v in stats.items()}


def with_size(record: Record, iou_type: str) -> Record:
    bitmap = rle.decode(record["segmentation"]) > 0
    box_area = record["bbox"][2] * record["bbox"][3]
    area = box_area if iou_type == "bbox" else int(bitmap.sum())
    return {"area": area, "bitmap": bitmap, **record}


def evaluated(truth: Record, objects: list[Record], found: list[Record]) -> list[Record]:
    """The best 300 detections of each image, of the categories it is annotated for."""
    kept = []
    for image in truth["images"]:
        own = [r for r in found if r["image_id"] == image["id"]]
        own = sorted(own, key=lambda r: r["score"], reverse=True)[:300]
        present = {o["category_id"] for o in objects if o["image_id"] == image["id"] and o["area"]}
        annotated = present | set(image["neg_category_ids"])
        kept += [r for r in own if r["category_id"] in annotated and r["area"]]
    return kept


def matched(
    truth: Record,
    objects: list[Record],
    found: list[Record],
    category: int,
    limits: tuple[float, float],
    threshold: float,
    iou: Any,
) -> tuple[list[float], float] | None:
    """Precision at the 101 recalls and the highest recall; None without objects."""

    def outside(r: Record) -> bool:
        return bool(r["area"] < limits[0] or r["area"] > limits[1])

    positives, judged = 0, []
    for image in sorted(truth["images"], key=lambda i: i["id"]):
        place = (image["id"], category)
        own = [o for o in objects if (o["image_id"], o["category_id"]) == place and o["area"]]
        positives += sum(not outside(o) for o in own)
        free = list(own)
        for record in [r for r in found if (r["image_id"], r["category_id"]) == place]:
            choices = [o for o in free if iou(record, o) >= threshold]
            choices = [o for o in choices if not outside(o)] or choices
            if choices:
                # The last of equal overlaps, as in COCO.
                best = max(enumerate(choices), key=lambda c: (iou(record, c[1]), c[0]))[1]
                free = [o for o in free if o is not best]
                if not outside(best):
                    judged.append((record["score"], True))
            elif not outside(record) and category not in image["not_exhaustive_category_ids"]:
                judged.append((record["score"], False))
    if positives == 0:
        return None
    hits = np.cumsum([hit for _, hit in sorted(judged, key=lambda j: -j[0])])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / positives
    at = [float(precision[recall >= r].max(initial=0)) for r in RECALLS]
    return at, float(recall[-1]) if len(recall) else 0.0


def random_sets(seed: int) -> tuple[Record, list[Record]]:
    rng = np.random.default_rng(seed)

    def box() -> list[int]:
        side = int(rng.choice([20, 32, 70, 100]))
        w, h = (int(v) for v in rng.integers(side // 2, side, size=2, endpoint=True))
        if rng.random() < 0.05:
            h = 0
        return [int(rng.integers(0, SIZE[1] - w)), int(rng.integers(0, SIZE[0] - h)), w, h]

    def some() -> list[int]:
        return [int(c) for c in np.flatnonzero(rng.random(5) < 0.3) + 1]

    images = range(1, 4)
    place = [(int(rng.integers(1, 4)), int(rng.integers(1, 5))) for _ in range(60)]
    objects = [
        shaped(box(), image_id=place[k][0], category_id=place[k][1])
        for k in range(rng.integers(1, 14))
    ]
    found = []
    for k in range(rng.integers(0, 25)):
        record = shaped(box(), image_id=place[-k][0], category_id=place[-k][1])
        if rng.random() < 0.75:
            aim = objects[rng.integers(len(objects))]
            x, y, w, h = aim["bbox"]
            moved = [x + int(rng.integers(0, 4)), y, w, max(h - int(rng.integers(0, 9)), 0)]
            keys = ("image_id", "category_id") if rng.random() < 0.9 else ("image_id",)
            record = shaped(moved, **{"category_id": 5} | {k: aim[k] for k in keys})
        found.append(record | {"score": float(rng.integers(0, 10)) / 10})
    truth = truth_of(
        *objects,
        negative={i: some() for i in images},
        inexhaustive={i: some() for i in images},
        images=3,
        frequencies="".join(rng.choice(list("rcf"), size=5)),
    )
    return truth, found


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_random_sets_against_the_definition(seed: int) -> None:
    truth, found = random_sets(seed)
    for iou_type, scores in evaluate_lvis(truth, found).items():
        expected = by_definition(truth, found, iou_type)
        assert scores.stats == pytest.approx(expected, abs=1e-12)
        assert scores.detections == len(found)


def test_a_category_is_scored_as_if_it_were_alone() -> None:
    truth, found = random_sets(5)
    scores = evaluate_lvis(truth, found, ("bbox",))["bbox"]
    assert scores.frequencies == {c["name"]: c["frequency"] for c in truth["categories"]}
    for category in truth["categories"]:
        alone = {**truth, "categories": [category]}
        expected = by_definition(alone, found, "bbox")
        assert scores.per_category[category["name"]] == pytest.approx(expected, abs=1e-12)


def test_random_sets_hold_what_lvis_treats_specially() -> None:
    inexhaustive = negative = other = flat = 0
    for seed in range(30):
        truth, found = random_sets(seed)
        pairs = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
        images = {i["id"]: i for i in truth["images"]}
        for record in found:
            image, category = images[record["image_id"]], record["category_id"]
            absent = (image["id"], category) not in pairs
            inexhaustive += category in image["not_exhaustive_category_ids"]
            negative += absent and category in image["neg_category_ids"]
            other += absent and category not in image["neg_category_ids"]
            flat += record["bbox"][3] == 0
    assert min(inexhaustive, negative, other, flat) > 10


# By hand.

A, B = [10, 10, 20, 20], [60, 10, 20, 20]


def ap(truth: Record, found: list[Record], iou_type: str) -> float:
    return evaluate_lvis(truth, found, (iou_type,))[iou_type].stats["AP"]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
class TestByHand:
    def test_a_miss_counts_where_the_category_is_annotated(self, iou_type: str) -> None:
        hit, miss = shaped(A, score=0.5), shaped(B, score=0.9)
        assert ap(truth_of(shaped(A)), [hit, miss], iou_type) == pytest.approx(0.5, abs=1e-12)

    def test_a_miss_on_an_image_without_the_category_counts_if_verified(
        self, iou_type: str
    ) -> None:
        found = [shaped(A, score=0.5), shaped(A, score=0.9, image_id=2)]
        assert ap(truth_of(shaped(A)), found, iou_type) == pytest.approx(1, abs=1e-12)
        verified = truth_of(shaped(A), negative={2: [1]})
        assert ap(verified, found, iou_type) == pytest.approx(0.5, abs=1e-12)

    def test_a_miss_is_free_where_not_all_objects_are_annotated(self, iou_type: str) -> None:
        found = [shaped(A, score=0.5), shaped(B, score=0.9)]
        truth = truth_of(shaped(A), inexhaustive={1: [1]})
        assert ap(truth, found, iou_type) == pytest.approx(1, abs=1e-12)
        other = truth_of(shaped(A), inexhaustive={1: [2]})
        assert ap(other, found, iou_type) == pytest.approx(0.5, abs=1e-12)

    def test_an_object_missed_counts_even_there(self, iou_type: str) -> None:
        truth = truth_of(shaped(A), shaped(B), inexhaustive={1: [1]})
        recalls_reached = 51 / 101  # 0, 0.01 ... 0.5
        found = [shaped(A, score=0.5)]
        assert ap(truth, found, iou_type) == pytest.approx(recalls_reached, abs=1e-12)

    def test_frequencies(self, iou_type: str) -> None:
        objects = [shaped(A, category_id=c) for c in (1, 2, 3)]
        truth = truth_of(*objects, frequencies="rcrf")
        found = [objects[0] | {"score": 0.9}, objects[1] | {"score": 0.9}]
        scores = evaluate_lvis(truth, found, (iou_type,))[iou_type]
        assert scores.stats["APr"] == pytest.approx(0.5, abs=1e-12)
        assert scores.stats["APc"] == pytest.approx(1, abs=1e-12)
        assert scores.stats["APf"] == -1
        assert scores.stats["AP"] == pytest.approx(2 / 3, abs=1e-12)
        assert scores.per_category["c1"]["APr"] == pytest.approx(1, abs=1e-12)
        assert scores.per_category["c1"]["APc"] == -1
        assert set(scores.per_category["c4"].values()) == {-1}
        assert scores.frequencies == {"c1": "r", "c2": "c", "c3": "r", "c4": "f"}

    def test_300_detections_of_an_image_count_over_all_categories(self, iou_type: str) -> None:
        better = [shaped(B, score=0.9, category_id=2)] * 299
        truth, hit = truth_of(shaped(A)), shaped(A, score=0.5)
        assert ap(truth, [hit, *better], iou_type) == pytest.approx(1, abs=1e-12)
        assert ap(truth, [hit, *better, better[0]], iou_type) == 0
        elsewhere = better[0] | {"image_id": 2}
        assert ap(truth, [hit, *better, elsewhere], iou_type) == pytest.approx(1, abs=1e-12)
        tied = [r | {"score": 0.5} for r in better]
        assert ap(truth, [*tied, hit, *tied], iou_type) == pytest.approx(1, abs=1e-12)
        assert ap(truth, [*tied, tied[0], hit], iou_type) == 0

    def test_300_is_a_limit_within_a_category_too(self, iou_type: str) -> None:
        better = [shaped(B, score=0.9)] * 299
        truth, hit = truth_of(shaped(A)), shaped(A, score=0.5)
        assert ap(truth, [hit, *better], iou_type) == pytest.approx(1 / 300, abs=1e-12)
        assert ap(truth, [hit, *better, better[0]], iou_type) == 0

    def test_shapes_without_area_do_not_count_as_in_lvis_api(self, iou_type: str) -> None:
        flat = shaped([60, 10, 20, 0])
        found = [shaped(A, score=0.5), flat | {"score": 0.9}]
        assert ap(truth_of(shaped(A), flat), found, iou_type) == pytest.approx(1, abs=1e-12)
        # Of the 300 they take their places nonetheless.
        assert ap(truth_of(shaped(A)), found[:1] + found[1:] * 300, iou_type) == 0

    def test_no_detections_and_no_objects(self, iou_type: str) -> None:
        scores = evaluate_lvis(truth_of(shaped(A)), [], (iou_type,))[iou_type]
        assert scores.stats["AP"] == scores.stats["AR300"] == 0
        assert scores.stats["APm"] == -1
        assert set(evaluate_lvis(truth_of(), [], (iou_type,))[iou_type].stats.values()) == {-1}


# Evaluator and input.


def test_the_evaluator_scores_what_evaluate_lvis_does() -> None:
    truth = truth_of(
        shaped(A), shaped(B, image_id=2, category_id=2), negative={2: [1]}, inexhaustive={1: [1]}
    )
    found = [
        shaped(A, score=0.5),
        shaped(B, score=0.75),
        shaped(A, score=0.75, image_id=2),
        shaped(B, score=0.25, image_id=2, category_id=2),
    ]
    evaluator = LvisEvaluator(truth, [1, 2, 3])
    for image_id in (2, 1):
        own = [r for r in found if r["image_id"] == image_id]
        evaluator.update([image_id], [instances_of(own, SIZE)])
    expected: dict[str, LvisScores] = evaluate_lvis(truth, found)
    assert evaluator.compute() == expected
    assert expected["segm"].stats["AP"] == pytest.approx(0.75, abs=1e-12)
    only = LvisEvaluator(truth, [1, 2, 3], iou_types=("bbox",), image_ids=[1])
    only.update([1], [instances_of(found[:2], SIZE)])
    assert only.compute()["bbox"].stats["AP"] == pytest.approx(1, abs=1e-12)
    assert only.compute()["bbox"].images == 1


def test_scores_are_plain_values_for_json() -> None:
    scores = evaluate_lvis(truth_of(shaped(A)), [shaped(A, score=0.5)], ("bbox",))["bbox"]
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["stats"] == scores.stats
    assert tuple(plain["stats"]) == METRIC_NAMES
    assert (plain["images"], plain["detections"]) == (2, 1)


def test_nothing_given_is_changed_printed_or_warned_of(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    truth, found = random_sets(1)
    before = json.dumps([truth, found])
    with caplog.at_level(logging.WARNING):
        evaluate_lvis(truth, found)
    assert json.dumps([truth, found]) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


@pytest.mark.parametrize("key", FEDERATED)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "must be a list of category ids, got None"),
        (1, "must be a list of category ids, got 1"),
        ([1, "2"], r"must be a list of category ids, got \[1, '2'\]"),
        ([True], r"must be a list of category ids, got \[True\]"),
        ([1, 9], "9 is not in 'categories'"),
    ],
)
def test_bad_lists_of_categories(key: str, value: object, words: str) -> None:
    truth = truth_of(shaped(A))
    truth["images"][1][key] = value
    with pytest.raises(GroundTruthError, match=f"image 2: key '{key}'.* {words}"):
        evaluate_lvis(truth, [])


@pytest.mark.parametrize("key", FEDERATED)
def test_a_coco_file_is_no_lvis_file(key: str) -> None:
    truth = truth_of(shaped(A))
    for image in truth["images"]:
        del image[key]
    with pytest.raises(GroundTruthError, match=f"2 of 2 images .*\n  image 1: key '{key}' is miss"):
        LvisEvaluator(truth, [1])


@pytest.mark.parametrize("value", [None, "x", "rare", 1, ["r"]])
def test_a_frequency_that_is_none(value: object) -> None:
    truth = truth_of(shaped(A))
    truth["categories"][2]["frequency"] = value
    with pytest.raises(GroundTruthError, match="category 3: key 'frequency' must be one of"):
        evaluate_lvis(truth, [])


def test_crowds_are_refused() -> None:
    with pytest.raises(GroundTruthError, match="annotation 2: key 'iscrowd' is 1, but LVIS has no"):
        evaluate_lvis(truth_of(shaped(A), shaped(B, iscrowd=1)), [])


@pytest.mark.parametrize("truth", [None, [], {"annotations": 1}, {"annotations": [1]}])
def test_what_is_no_annotation_file(truth: object) -> None:
    with pytest.raises(GroundTruthError, match="this is no COCO annotation file"):
        evaluate_lvis(truth, [])  # type: ignore[arg-type]


def test_bad_results_and_iou_types_are_named() -> None:
    with pytest.raises(ResultsError, match="record 0: key 'score' must be a finite number"):
        evaluate_lvis(truth_of(shaped(A)), [shaped(A, score=float("nan"))])
    with pytest.raises(ValueError, match="iou_types must be some of"):
        evaluate_lvis(truth_of(shaped(A)), [], ("mask",))
