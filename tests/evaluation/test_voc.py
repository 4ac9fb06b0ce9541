"""Pascal VOC scores against the devkit's loop written out, and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.data.formats import voc as voc_format
from instseg.evaluation.ground_truth import GroundTruthError
from instseg.evaluation.results import ResultsError
from instseg.evaluation.voc import VocEvaluator, VocScores, evaluate_voc
from instseg.ops import rle
from tests.evaluation.test_collector import instances_of

SIZE = (40, 60)
Record = dict[str, Any]


def rectangle(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def shaped(box: list[int], **more: Any) -> Record:
    """A rectangle as box and mask."""
    code = rle.encode(rectangle(*box))
    code = {"size": list(SIZE), "counts": code["counts"].decode()}
    return {"image_id": 1, "category_id": 1, "bbox": box, "segmentation": code, **more}


def truth_of(*objects: Record, images: int = 2, categories: int = 2) -> Record:
    return {
        "images": [{"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(images)],
        "categories": [{"id": i + 1, "name": f"c{i + 1}"} for i in range(categories)],
        "annotations": [{"id": i, "iscrowd": 0, "area": 1, **o} for i, o in enumerate(objects)],
    }


def scores_of(truth: Record, found: list[Record], **options: Any) -> VocScores:
    (scores,) = evaluate_voc(truth, found, **options).values()
    return scores


# The devkit's loop.


def pixel_iou(a: list[float], b: list[float]) -> float:
    """The devkit's, of boxes xmin, ymin, xmax, ymax that hold their last pixels."""
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if w <= 0 or h <= 0:
        return 0.0
    union = sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - w * h
    return w * h / union


def inclusive(record: Record) -> list[float]:
    x, y, w, h = record["bbox"]
    return [x, y, x + w, y + h]


def one_based(record: Record) -> list[float]:
    """The corners that VOC's files give a continuous box."""
    x, y, w, h = record["bbox"]
    return [x + 1, y + 1, x + w, y + h]


def continuous_iou(a: Record, b: Record) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
    w, h = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    return w * h / (aw * ah + bw * bh - w * h) if w > 0 and h > 0 else 0.0


def bitmap_iou(a: Record, b: Record) -> float:
    first, second = (rle.decode(r["segmentation"]) > 0 for r in (a, b))
    return float((first & second).sum() / (first | second).sum())


IOUS = {
    "continuous": continuous_iou,
    "pixel": lambda a, b: pixel_iou(inclusive(a), inclusive(b)),
    "segm": bitmap_iou,
}


def by_the_devkit(
    truth: Record, found: list[Record], category: int, iou: Any, threshold: float
) -> tuple[float, float, list[float], list[float]] | None:
    """(area AP, 11-point AP, precision, recall) of VOCevaldet.m; None without objects."""
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    positives = sum(not a.get("difficult", 0) for a in objects)
    if positives == 0:
        return None
    taken: set[int] = set()
    tp = fp = 0
    points = []
    own = [r for r in found if r["category_id"] == category]
    for record in sorted(own, key=lambda r: r["score"], reverse=True):
        best, nearest = 0.0, None
        for item in objects:
            if item["image_id"] == record["image_id"] and iou(record, item) > best:
                best, nearest = iou(record, item), item
        if nearest is None or best < threshold:
            fp += 1
        elif not nearest.get("difficult", 0):
            if nearest["id"] in taken:
                fp += 1
            else:
                taken.add(nearest["id"])
                tp += 1
        points.append((tp, fp))
    precision = [t / (t + f) if t + f else 0.0 for t, f in points]
    eleven = sum(
        max((p for p, (t, _) in zip(precision, points, strict=True) if 10 * t >= k * positives),
            default=0.0)
        for k in range(11)
    ) / 11  # fmt: skip
    area = sum(
        max(p for p, (t, _) in zip(precision, points, strict=True) if t >= k) / positives
        for k in range(1, tp + 1)
    )
    return area, eleven, precision, [t / positives for t, _ in points]


def check_against_the_devkit(
    scores: VocScores, truth: Record, found: list[Record], iou: Any, threshold: float = 0.5
) -> None:
    aps = []
    for category in truth["categories"]:
        expected = by_the_devkit(truth, found, category["id"], iou, threshold)
        own = scores.per_category[category["name"]]
        if expected is None:
            assert own == {"AP": -1.0, "AP11": -1.0}
            assert category["name"] not in scores.curves
            continue
        assert (own["AP"], own["AP11"]) == pytest.approx(expected[:2], abs=1e-12)
        curve = scores.curves[category["name"]]
        assert curve.precision.tolist() == pytest.approx(expected[2], abs=1e-12)
        assert curve.recall.tolist() == pytest.approx(expected[3], abs=1e-12)
        aps.append(expected[:2])
    mean = np.mean(aps, axis=0) if aps else [-1, -1]
    assert list(scores.stats.values()) == pytest.approx(mean, abs=1e-12)


def random_sets(seed: int) -> tuple[Record, list[Record]]:
    """Few places and sizes and ten scores, so that overlaps, scores and claims tie."""
    rng = np.random.default_rng(seed)

    def box() -> list[int]:
        return [int(v) for v in (*rng.integers(0, 14, size=2), *rng.integers(1, 9, size=2) * 2)]

    def where() -> Record:
        return {"image_id": int(rng.integers(1, 5)), "category_id": int(rng.integers(1, 4))}

    objects = [
        shaped(box(), **where(), difficult=int(rng.random() < 0.25))
        for _ in range(rng.integers(0, 15))
    ]
    found = []
    for _ in range(rng.integers(0, 30)):
        record = shaped(box(), **where())
        if objects and rng.random() < 0.7:
            aim = objects[rng.integers(len(objects))]
            x, y, w, h = aim["bbox"]
            moved = [x + int(rng.integers(0, 3)), y, w + int(rng.integers(0, 3)), h]
            record = shaped(moved, **{k: aim[k] for k in ("image_id", "category_id")})
        found.append(record | {"score": float(rng.integers(0, 10)) / 10})
    return truth_of(*objects, images=4, categories=4), found


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(sorted(IOUS)),
    threshold=st.sampled_from([0.3, 0.5, 0.7, 1.0]),
)
def test_random_sets_against_the_devkits_loop(seed: int, kind: str, threshold: float) -> None:
    truth, found = random_sets(seed)
    iou_types = ("segm",) if kind == "segm" and truth["annotations"] else ("bbox",)
    if kind == "segm" and not truth["annotations"]:
        kind = "continuous"
    scores = scores_of(
        truth, found, iou_types=iou_types, iou_threshold=threshold, pixel_boxes=kind == "pixel"
    )
    check_against_the_devkit(scores, truth, found, IOUS[kind], threshold)
    assert scores.detections == len(found)
    assert scores.images == 4


def test_random_sets_hold_difficult_objects_duplicates_and_ties() -> None:
    difficult = tied = partial = 0
    for seed in range(30):
        truth, found = random_sets(seed)
        difficult += sum(a["difficult"] for a in truth["annotations"])
        tied += len(found) - len({(r["category_id"], r["score"]) for r in found})
        partial += 0 < scores_of(truth, found).stats["AP"] < 1
    assert difficult > 20
    assert tied > 50
    assert partial > 10


# By hand.

A, B = [2, 2, 10, 10], [30, 2, 10, 10]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
class TestByHand:
    def test_a_duplicate_is_a_false_positive(self, iou_type: str) -> None:
        found = [shaped(A, score=0.9), shaped(A, score=0.8), shaped(B, score=0.7)]
        scores = scores_of(truth_of(shaped(A), shaped(B)), found, iou_types=(iou_type,))
        curve = scores.curves["c1"]
        assert curve.objects == 2
        assert curve.scores.tolist() == [0.9, 0.8, 0.7]
        assert curve.recall.tolist() == [0.5, 0.5, 1]
        assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3], abs=1e-15)
        assert scores.stats["AP"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3, abs=1e-15)
        # 0, 0.1 ... 0.5 are six points at precision 1, 0.6 ... 1 five at 2/3.
        assert scores.stats["AP11"] == pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-15)

    def test_difficult_objects_are_neither_counted_nor_punished(self, iou_type: str) -> None:
        truth = truth_of(shaped(A), shaped(B, difficult=1))
        found = [shaped(B, score=0.9), shaped(B, score=0.8), shaped(A, score=0.7)]
        scores = scores_of(truth, found, iou_types=(iou_type,))
        assert scores.stats == {"AP": 1, "AP11": 1}
        assert scores.curves["c1"].objects == 1
        assert scores.curves["c1"].precision.tolist() == [0, 0, 1]
        unfound = scores_of(truth, found[2:], iou_types=(iou_type,))
        assert unfound.stats == {"AP": 1, "AP11": 1}

    def test_a_poor_overlap_with_a_difficult_object_is_punished(self, iou_type: str) -> None:
        truth = truth_of(shaped(A), shaped(B, difficult=True))
        found = [shaped([30, 2, 10, 4], score=0.9), shaped(A, score=0.8)]
        assert scores_of(truth, found, iou_types=(iou_type,)).stats["AP"] == 0.5

    def test_a_crowd_is_taken_for_difficult(self, iou_type: str) -> None:
        truth = truth_of(shaped(A), shaped(B, iscrowd=1))
        found = [shaped(B, score=0.9), shaped(A, score=0.8)]
        assert scores_of(truth, found, iou_types=(iou_type,)).stats["AP"] == 1

    def test_there_is_no_second_choice(self, iou_type: str) -> None:
        # The second detection overlaps A by 9/11, which is taken, and the other object by 7/13.
        other = [6, 2, 10, 10]
        found = [shaped(A, score=0.9), shaped([3, 2, 10, 10], score=0.8)]
        scores = scores_of(truth_of(shaped(A), shaped(other)), found, iou_types=(iou_type,))
        assert scores.curves["c1"].recall.tolist() == [0.5, 0.5]

    def test_equal_scores_keep_the_order_of_the_records(self, iou_type: str) -> None:
        hit, miss = shaped(A, score=0.5), shaped(B, score=0.5)
        for found, ap in (([hit, miss], 1.0), ([miss, hit], 0.5)):
            assert scores_of(truth_of(shaped(A)), found, iou_types=(iou_type,)).stats["AP"] == ap

    def test_an_overlap_of_exactly_the_threshold_is_a_hit(self, iou_type: str) -> None:
        found = [shaped([2, 2, 10, 5], score=0.5)]
        truth = truth_of(shaped(A))
        assert scores_of(truth, found, iou_types=(iou_type,)).stats["AP"] == 1
        above = scores_of(truth, found, iou_types=(iou_type,), iou_threshold=0.51)
        assert above.stats["AP"] == 0

    def test_classes_without_objects_are_left_out_of_the_mean(self, iou_type: str) -> None:
        truth = truth_of(shaped(A), shaped(A, category_id=2, difficult=1), categories=3)
        found = [shaped(A, score=0.9, category_id=c) for c in (1, 2, 3)]
        scores = scores_of(truth, found, iou_types=(iou_type,))
        assert scores.stats["AP"] == 1
        assert scores.per_category["c2"] == scores.per_category["c3"] == {"AP": -1, "AP11": -1}
        assert list(scores.curves) == ["c1"]
        assert scores_of(truth, [], iou_types=(iou_type,)).stats == {"AP": 0, "AP11": 0}

    def test_nothing_to_find_at_all(self, iou_type: str) -> None:
        scores = scores_of(truth_of(shaped(A, difficult=1)), [], iou_types=(iou_type,))
        assert scores.stats == {"AP": -1, "AP11": -1}


def test_a_recall_of_exactly_three_tenths_reaches_the_point_03() -> None:
    boxes = [[5 * i, 0, 5, 5] for i in range(10)]
    found = [shaped(b, score=0.9) for b in boxes[:3]]
    scores = scores_of(truth_of(*map(shaped, boxes)), found)
    assert scores.stats["AP"] == pytest.approx(0.3, abs=1e-15)
    assert scores.stats["AP11"] == pytest.approx(4 / 11, abs=1e-15)


def test_pixel_boxes_hold_their_last_row_and_column() -> None:
    # 10 x 10 and 10 x 5 pixels, or 81 and 36 square units.
    truth, found = truth_of(shaped([1, 1, 9, 9])), [shaped([1, 1, 9, 4], score=0.5)]
    assert scores_of(truth, found, pixel_boxes=True).stats["AP"] == 1
    assert scores_of(truth, found).stats["AP"] == 0


def test_masks_are_compared_and_not_their_boxes() -> None:
    frame = rectangle(2, 2, 20, 20) - rectangle(4, 4, 16, 16)
    code = rle.encode(frame)
    truth = truth_of(shaped([2, 2, 20, 20], segmentation=code))
    found = [shaped([2, 2, 20, 20], score=0.5)]
    scores = evaluate_voc(truth, found, ("bbox", "segm"))
    assert scores["bbox"].stats["AP"] == 1
    assert scores["segm"].stats["AP"] == 0  # 144 of 400 pixels


def test_polygons_of_the_ground_truth_are_masks() -> None:
    polygon = [[2, 2, 12, 2, 12, 12, 2, 12]]
    truth = truth_of(shaped(A, segmentation=polygon))
    scores = scores_of(truth, [shaped(A, score=0.5)], iou_types=("segm",), iou_threshold=1)
    assert scores.stats["AP"] == 1


# Evaluator, input, files.


def test_the_evaluator_scores_what_evaluate_voc_does() -> None:
    truth = truth_of(shaped(A), shaped(B, difficult=1), shaped(A, image_id=2, category_id=2))
    found = [
        shaped(B, score=0.75), shaped(A, score=0.5), shaped(B, image_id=2, score=0.25)
    ]  # fmt: skip
    options: Record = {"iou_types": ("bbox", "segm"), "iou_threshold": 0.6, "pixel_boxes": True}
    evaluator = VocEvaluator(truth, [1, 2], **options)
    for image_id in (2, 1):
        own = [r for r in found if r["image_id"] == image_id]
        evaluator.update([image_id], [instances_of(own, SIZE)])
    expected = evaluate_voc(truth, found, **options)
    got = evaluator.compute()
    assert {t: s.to_dict() for t, s in got.items()} == {t: s.to_dict() for t, s in expected.items()}
    assert got["bbox"].stats["AP"] == 0.5
    only = VocEvaluator(truth, [1, 2], image_ids=[1])
    only.update([1], [instances_of(found[:2], SIZE)])
    assert only.compute()["bbox"].stats["AP"] == 1
    assert only.compute()["bbox"].images == 1


def test_scores_are_plain_values_for_json() -> None:
    scores = scores_of(truth_of(shaped(A)), [shaped(A, score=0.5)])
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["curves"]["c1"] == {
        "objects": 1, "scores": [0.5], "precision": [1.0], "recall": [1.0],
    }  # fmt: skip
    assert plain["stats"] == {"AP": 1.0, "AP11": 1.0}


@pytest.mark.parametrize("value", [2, -1, "1", None, 1.0, [1]])
def test_a_difficult_that_is_no_flag(value: object) -> None:
    truth = truth_of(shaped(A), shaped(B, difficult=value))
    with pytest.raises(GroundTruthError, match="annotation 1: key 'difficult' must be 0 or 1, got"):
        evaluate_voc(truth, [])


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan"), True, "0.5"])
def test_a_threshold_that_is_none(threshold: Any) -> None:
    with pytest.raises(ValueError, match=r"iou_threshold must be in \(0, 1\], got"):
        evaluate_voc(truth_of(shaped(A)), [], iou_threshold=threshold)


@pytest.mark.parametrize("iou_types", ["bbox", (), ("boundary",)])
def test_unknown_iou_types(iou_types: Any) -> None:
    with pytest.raises(ValueError, match="iou_types must be some of"):
        VocEvaluator(truth_of(shaped(A)), [1], iou_types=iou_types)


def test_bad_results_and_missing_masks_are_named() -> None:
    truth = truth_of(shaped(A))
    with pytest.raises(ResultsError, match="record 1: key 'image_id': 9 is not in"):
        evaluate_voc(truth, [shaped(A, score=1.0), shaped(A, score=1.0, image_id=9)])
    del truth["annotations"][0]["segmentation"]
    with pytest.raises(GroundTruthError, match="no annotation has a segmentation"):
        evaluate_voc(truth, [], ("segm",))


@pytest.mark.parametrize("value", ["0", "1"])
def test_difficult_arrives_from_vocs_files(tmp_path: Path, value: str) -> None:
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    (tmp_path / "JPEGImages" / "a.jpg").touch()
    box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>12</xmax><ymax>12</ymax></bndbox>"
    (tmp_path / "Annotations" / "a.xml").write_text(
        "<annotation><size><width>60</width><height>40</height></size><object><name>c</name>"
        f"<difficult>{value}</difficult>{box}</object></annotation>"
    )
    truth = voc_format.read(tmp_path)
    (scores,) = evaluate_voc(truth, [shaped(A, score=0.5)]).values()
    assert scores.stats["AP"] == (1 if value == "0" else -1)


@pytest.mark.real_data
def test_converted_boxes_give_the_devkits_figures_without_pixel_boxes(real_data: Path) -> None:
    truth = voc_format.read(real_data / "bccd", split="val")
    boxes = truth["annotations"]
    assert all(a["difficult"] in (0, 1) for a in boxes)
    truth["annotations"] = [a for a in boxes if min(a["bbox"][2:]) > 0]
    assert len(truth["annotations"]) > 900
    rng = np.random.default_rng(0)
    for annotation in truth["annotations"][::7]:
        annotation["difficult"] = 1
    found = []
    for a in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = a["bbox"]
            dx, dy = rng.integers(-25, 25, size=2) * [w, h] // 100
            box = [float(v) for v in (x + dx, y + dy, w, h)]
            place = {k: a[k] for k in ("image_id", "category_id")}
            found.append({"bbox": box, "score": float(rng.random()), **place})
    scores = scores_of(truth, found)
    assert len(scores.curves) == 3
    assert 0.1 < scores.stats["AP"] < 0.9
    check_against_the_devkit(
        scores, truth, found, lambda a, b: pixel_iou(one_based(a), one_based(b))
    )
