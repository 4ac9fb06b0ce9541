"""The backends against each other and against pycocotools used as its manual says."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from instseg.evaluation.accumulate import PrecisionRecall, accumulate
from instseg.evaluation.coco import (
    BACKENDS,
    METRIC_NAMES,
    OTHER_BACKENDS,
    evaluate_results,
    match_records,
)
from instseg.evaluation.ground_truth import prepare_ground_truth
from instseg.evaluation.params import CocoParams
from instseg.evaluation.results import check_results
from instseg.evaluation.tables import ScoringData

IOU_TYPES = ("bbox", "segm")
Sets = tuple[dict[str, Any], list[dict[str, Any]]]


def random_sets(seed: int) -> Sets:
    """Ground truth and detections with all that COCO treats specially.

    Images without objects, without detections; categories without objects; crowds; polygons of two
    parts; tied scores and overlaps; over 100 detections of one category; sizes small to large.
    """
    rng = np.random.default_rng(seed)
    images = [
        {"id": int(i), "height": int(h), "width": int(w)}
        for i, (h, w) in zip(
            rng.choice(50, size=rng.integers(2, 7), replace=False),
            rng.integers(120, 260, size=(7, 2)),
            strict=False,
        )
    ]
    categories = [{"id": i, "name": f"c{i}"} for i in (11, 3, 0, 7)]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.integers(0, 9)):
            annotations.append(random_annotation(rng, image, len(annotations)))
        own = [a for a in annotations if a["image_id"] == image["id"]]
        if own and rng.random() < 0.15:
            aims = own[:1] * 130
        else:
            aims = [own[rng.integers(len(own))] if own else None for _ in range(rng.integers(14))]
        detections += [random_detection(rng, image, aim) for aim in aims]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


def random_box(rng: np.random.Generator, image: dict[str, Any]) -> list[float]:
    w, h = (float(rng.uniform(3, image[k] * rng.choice([0.2, 0.9]))) for k in ("width", "height"))
    x, y = rng.uniform(0, image["width"] - w), rng.uniform(0, image["height"] - h)
    return [float(round(v)) for v in (x, y, w, h)]  # whole numbers make tied overlaps


def random_annotation(
    rng: np.random.Generator, image: dict[str, Any], number: int
) -> dict[str, Any]:
    x, y, w, h = box = random_box(rng, image)
    polygons = [
        [x, y, x + w, y, x + w, y + h / 3, x, y + h / 2],
        [x, y + 0.6 * h, x + w, y + 0.7 * h, x + 0.4 * w, y + h],
    ]
    size = [image["height"], image["width"]]
    code = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    crowd = bool(rng.random() < 0.15)
    return {
        "id": number + 1,
        "image_id": image["id"],
        "category_id": int(rng.choice([3, 7, 11])),
        "bbox": box,
        "area": float(coco_mask.area(code)),
        "iscrowd": int(crowd),
        "segmentation": uncompressed(code) if crowd else polygons,
    }


def uncompressed(code: dict[str, Any]) -> dict[str, Any]:
    pixels = coco_mask.decode(code).ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=0, append=2))
    return {"size": list(code["size"]), "counts": np.diff(changes, prepend=0).tolist()}


def random_detection(
    rng: np.random.Generator, image: dict[str, Any], aim: dict[str, Any] | None
) -> dict[str, Any]:
    """A detection near ``aim`` as a rule, of its category as a rule."""
    box, category = random_box(rng, image), int(rng.choice([0, 3, 7, 11]))
    if aim is not None and rng.random() < 0.9:
        moved = zip(aim["bbox"], rng.integers(-2, 3, size=4), strict=True)
        box = [max(v + float(d), 1.0) for v, d in moved]
        category = aim["category_id"] if rng.random() < 0.9 else category
    x, y, w, h = box
    if rng.random() < 0.3:  # the lower of two parts is missed
        h *= 0.6
    rectangle = [x, y, x + w, y, x + w, y + h, x, y + h]
    (code,) = coco_mask.frPyObjects([rectangle], image["height"], image["width"])
    return {
        "image_id": image["id"],
        "category_id": category,
        "bbox": box,
        "score": round(float(rng.random()), 1),  # many ties
        "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
    }


def by_the_manual(
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    iou_type: str,
    category: int | None = None,
) -> list[float]:
    """The twelve numbers of pycocotools alone; masks as records without a box, as COCO has them."""
    if iou_type == "segm":
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(json.loads(json.dumps(detections))), iou_type)
        if category is not None:
            evaluation.params.catIds = [category]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(v) for v in evaluation.stats]


def test_random_sets_hold_what_they_promise() -> None:
    sets = [random_sets(seed) for seed in range(30)]
    for truth, detections in sets:
        assert 0 not in {a["category_id"] for a in truth["annotations"]}
        assert len({d["score"] for d in detections}) <= 11
    crowds = [a for truth, _ in sets for a in truth["annotations"] if a["iscrowd"]]
    assert len(crowds) > 10
    assert any(len(detections) > 130 for _, detections in sets)
    empty = [
        i
        for truth, _ in sets
        for i in truth["images"]
        if i["id"] not in {a["image_id"] for a in truth["annotations"]}
    ]
    assert len(empty) > 5


def tables_of(
    backend: str,
    truth: dict[str, Any],
    records: list[dict[str, Any]],
    iou_type: str,
    params: CocoParams,
) -> PrecisionRecall:
    if backend in OTHER_BACKENDS:
        return OTHER_BACKENDS[backend](ScoringData.of(truth, records, iou_type), params)
    categories = 1 if params.class_agnostic else len(truth["categories"])
    return accumulate(match_records(truth, records, iou_type, params), params, categories)


OTHER_PARAMS = CocoParams(
    iou_thresholds=(0.3, 0.5, 0.9, 1.0),
    areas={"all": (0, 1e10), "tiny": (0, 500), "rest": (500, 1e10)},
    max_detections=(2, 5, 40, 120),
)


@pytest.mark.parametrize(
    "params",
    [CocoParams(), OTHER_PARAMS, CocoParams(class_agnostic=True)],
    ids=["coco", "other", "class-agnostic"],
)
@pytest.mark.parametrize("iou_type", IOU_TYPES)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_backends_agree_on_random_sets(seed: int, iou_type: str, params: CocoParams) -> None:
    truth, detections = random_sets(seed)
    prepared = prepare_ground_truth(truth, IOU_TYPES)
    checked = check_results(detections, prepared, IOU_TYPES)
    own, fast, reference = (
        tables_of(backend, prepared, checked, iou_type, params) for backend in BACKENDS
    )
    for tables in (own, fast):
        assert np.abs(tables.precision - reference.precision).max() <= 1e-12
        assert np.abs(tables.recall - reference.recall).max() <= 1e-12


@pytest.mark.parametrize("seed", range(0, 30, 5))
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_those_of_pycocotools_by_its_manual(seed: int, backend: str) -> None:
    truth, detections = random_sets(seed)
    scores = evaluate_results(truth, detections, IOU_TYPES, backend)
    for iou_type in IOU_TYPES:
        expected = by_the_manual(truth, detections, iou_type)
        assert list(scores[iou_type].stats.values()) == pytest.approx(expected, abs=1e-12)
        for category in (0, 3):
            expected = by_the_manual(truth, detections, iou_type, category)
            own = scores[iou_type].per_category[f"c{category}"]
            assert [own[name] for name in METRIC_NAMES] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_on_detections_are_obeyed(backend: str) -> None:
    box = [0, 0, 10, 10]
    truth = {
        "images": [{"id": 1, "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
    }
    base = {"image_id": 1, "category_id": 1}
    detections = [{**base, "bbox": [30, 30, 5, 5], "score": 0.9}] * 3
    detections.append({**base, "bbox": box, "score": 0.1})
    prepared = prepare_ground_truth(truth, ("bbox",))
    params = CocoParams(max_detections=(1, 3, 4))
    tables = tables_of(backend, prepared, detections, "bbox", params)
    assert tables.precision.shape == (10, 101, 1, 4, 3)
    assert tables.recall[:, 0, 0].tolist() == [[0.0, 0.0, 1.0]] * 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_no_detections_at_all(backend: str, iou_type: str) -> None:
    truth, _ = random_sets(1)
    scores = evaluate_results(truth, [], (iou_type,), backend)[iou_type]
    assert scores.stats["AP"] == 0
    assert scores.stats["AR100"] == 0
    assert set(scores.per_category["c0"].values()) == {-1}
    assert scores.detections == 0
    bare = {**truth, "annotations": []}
    assert set(evaluate_results(bare, [], (iou_type,), backend)[iou_type].stats.values()) == {-1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_printed_and_nothing_given_is_changed(
    backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    truth, detections = random_sets(2)
    before = json.dumps([truth, detections])
    evaluate_results(truth, detections, IOU_TYPES, backend)
    assert capfd.readouterr().out == ""
    assert json.dumps([truth, detections]) == before
