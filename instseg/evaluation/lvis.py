"""LVIS average precision and recall of boxes and masks, for federated annotation.

Source: Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, 2019,
and ``eval.py`` and ``results.py`` of https://github.com/lvis-dataset/lvis-api.

An image is annotated for some categories only: those it has objects of and those verified to be
absent (its ``neg_category_ids``); detections of any other are passed over there. Where not all
objects of a category are annotated (its ``not_exhaustive_category_ids``), detections without an
object are passed over too. For the rest it is COCO's protocol, with the 300 detections of highest
score of an image, over all categories, in place of 100 for each category, and without crowds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from reprlib import repr as short
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt

from instseg.evaluation.checks import is_int, raise_defects
from instseg.evaluation.collector import SHAPES, RecordCollector, check_iou_types
from instseg.evaluation.ground_truth import GroundTruthError, prepare_ground_truth
from instseg.evaluation.results import check_results
from instseg.ops import rle

MAX_DETECTIONS = 300
"""The limit on detections for each image."""

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
"""A category's ``frequency``: in up to 10, in up to 100, in more images of the training set."""

_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class LvisMetric:
    """One of LVIS's thirteen numbers.

    Args:
        name: its short name.
        recall: average recall rather than precision.
        iou: the IoU threshold; None averages over 0.5, 0.55 ... 0.95.
        area: "all", "small", "medium" or "large", as in COCO.
        frequency: categories of this one of `FREQUENCIES` alone.
    """

    name: str
    recall: bool = False
    iou: float | None = None
    area: str = "all"
    frequency: str | None = None

    def of(self, tables: LvisTables) -> float:
        """The mean over thresholds, recalls and categories with ground truth; -1 without any."""
        table = (tables.recall if self.recall else tables.precision)[
            ..., tables.areas.index(self.area)
        ]
        if self.iou is not None:
            table = table[np.isclose(tables.iou_thresholds, self.iou)]
        if self.frequency is not None:
            table = table[..., np.array(tables.frequencies) == self.frequency]
        known = table[table > -1]
        return float(known.mean()) if known.size else -1.0


METRICS = (
    LvisMetric("AP"),
    LvisMetric("AP50", iou=0.5),
    LvisMetric("AP75", iou=0.75),
    LvisMetric("APs", area="small"),
    LvisMetric("APm", area="medium"),
    LvisMetric("APl", area="large"),
    LvisMetric("APr", frequency="r"),
    LvisMetric("APc", frequency="c"),
    LvisMetric("APf", frequency="f"),
    LvisMetric("AR300", recall=True),
    LvisMetric("ARs", recall=True, area="small"),
    LvisMetric("ARm", recall=True, area="medium"),
    LvisMetric("ARl", recall=True, area="large"),
)
"""In the order LVIS prints them."""

METRIC_NAMES = tuple(m.name for m in METRICS)


@dataclass(frozen=True)
class LvisTables:
    """The accumulated tables; -1 where there is no ground truth.

    Args:
        precision: ``float64 [T, R, K, A]`` at T IoU thresholds, R = 101 recalls, K categories in
            order of id and A ranges of area.
        recall: ``float64 [T, K, A]``, the highest recall reached.
        iou_thresholds: the T thresholds.
        areas: the names of the A ranges.
        frequencies: the ``frequency`` of the K categories.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    iou_thresholds: list[float]
    areas: list[str]
    frequencies: list[str]

    def of_category(self, index: int) -> LvisTables:
        """The tables of one category."""
        return LvisTables(
            self.precision[:, :, [index]],
            self.recall[:, [index]],
            self.iou_thresholds,
            self.areas,
            [self.frequencies[index]],
        )


@dataclass(frozen=True)
class LvisScores:
    """What one scoring gave. Scores lie in [0, 1], or are -1 where there is no ground truth.

    Args:
        iou_type: "bbox" or "segm".
        stats: the thirteen numbers by `METRIC_NAMES`.
        per_category: the same for each category, by its name, in order of category id.
        frequencies: each category's ``frequency``, "r", "c" or "f", by its name.
        images: how many images were scored.
        detections: how many detections there were on them, before the limit of 300.
    """

    iou_type: str
    stats: dict[str, float]
    per_category: dict[str, dict[str, float]]
    frequencies: dict[str, str]
    images: int
    detections: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


class LvisEvaluator(RecordCollector):
    """Collects predictions image by image and scores them as LVIS does.

    Args:
        ground_truth: an LVIS dictionary; it is copied, not changed.
        category_ids: the category id of each label, in order.
        iou_types: "bbox", "segm" or both.
        image_ids: score these images alone.

    Raises:
        ValueError: an unknown IoU type, category id or image id.
        GroundTruthError: see `prepare_lvis`.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        category_ids: Sequence[int],
        *,
        iou_types: Sequence[str] = SHAPES,
        image_ids: Sequence[int] | None = None,
    ) -> None:
        check_iou_types(iou_types)
        super().__init__(prepare_lvis(ground_truth, iou_types), category_ids, iou_types, image_ids)

    def compute(self) -> dict[str, LvisScores]:
        """Score what was added, by IoU type."""
        records = self.results()
        return {t: _score(self.ground_truth, records, t) for t in self.iou_types}


def evaluate_lvis(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str] = SHAPES,
) -> dict[str, LvisScores]:
    """Score result records against an LVIS dictionary; neither is changed.

    Returns:
        Scores by IoU type.

    Raises:
        ValueError: an unknown IoU type.
        GroundTruthError: see `prepare_lvis`.
        ResultsError: see `check_results`.
    """
    check_iou_types(iou_types)
    prepared = prepare_lvis(ground_truth, iou_types)
    records = check_results(results, prepared, iou_types)
    return {t: _score(prepared, records, t) for t in iou_types}


def prepare_lvis(
    ground_truth: Any, iou_types: Sequence[str], *, source: str = "ground truth"
) -> dict[str, Any]:
    """`prepare_ground_truth` that keeps what LVIS adds to COCO's format.

    Raises:
        GroundTruthError: see `prepare_ground_truth`; an image whose ``neg_category_ids`` or
            ``not_exhaustive_category_ids`` is missing or not a list of the categories' ids; a
            category whose ``frequency`` is not "r", "c" or "f"; an annotation that is a crowd.
    """
    prepared = prepare_ground_truth(_without_crowds(ground_truth), iou_types, source=source)
    images, categories = ground_truth["images"], ground_truth["categories"]
    known = {c["id"] for c in categories}
    for key, defects in (
        ("images", [_federation_defect(i, known) for i in images]),
        ("categories", [_frequency_defect(c) for c in categories]),
        ("annotations", [_crowd_defect(a) for a in ground_truth["annotations"]]),
    ):
        found = [defect for defect in defects if defect]
        raise_defects(GroundTruthError, source, found, len(defects), key)
    return {
        "images": [
            own | {k: list(given[k]) for k in _FEDERATED}
            for own, given in zip(prepared["images"], images, strict=True)
        ],
        "categories": [
            own | {"frequency": given["frequency"]}
            for own, given in zip(prepared["categories"], categories, strict=True)
        ],
        "annotations": prepared["annotations"],
    }


def _without_crowds(ground_truth: Any) -> Any:
    """A copy whose annotations say that they are no crowds; LVIS's own do not have the key."""
    annotations = ground_truth.get("annotations") if isinstance(ground_truth, dict) else None
    if not isinstance(annotations, list):
        return ground_truth
    marked = [{"iscrowd": 0} | a if isinstance(a, dict) else a for a in annotations]
    return ground_truth | {"annotations": marked}


def _federation_defect(image: dict[str, Any], known: set[int]) -> str | None:
    for key in _FEDERATED:
        if key not in image:
            return f"image {image['id']}: key {key!r} is missing; this is no LVIS annotation file"
        ids = image[key]
        if not isinstance(ids, list) or not all(map(is_int, ids)):
            return (
                f"image {image['id']}: key {key!r} must be a list of category ids, got {short(ids)}"
            )
        if unknown := set(ids) - known:
            return f"image {image['id']}: key {key!r}: {min(unknown)} is not in 'categories'"
    return None


def _frequency_defect(category: dict[str, Any]) -> str | None:
    frequency = category.get("frequency")
    if isinstance(frequency, str) and frequency in FREQUENCIES:
        return None
    return (
        f"category {category['id']}: key 'frequency' must be one of {tuple(FREQUENCIES)}, "
        f"got {short(frequency)}"
    )


def _crowd_defect(annotation: dict[str, Any]) -> str | None:
    if not annotation.get("iscrowd", 0):
        return None
    return (
        f"annotation {annotation['id']}: key 'iscrowd' is 1, but LVIS has no crowds; leave it out "
        "and put its category into the image's 'not_exhaustive_category_ids'"
    )


def _score(
    ground_truth: dict[str, Any], records: list[dict[str, Any]], iou_type: str
) -> LvisScores:
    tables = _tables(ground_truth, records, iou_type)
    categories = sorted(ground_truth["categories"], key=lambda c: int(c["id"]))
    return LvisScores(
        iou_type=iou_type,
        stats=_stats(tables),
        per_category={c["name"]: _stats(tables.of_category(k)) for k, c in enumerate(categories)},
        frequencies={c["name"]: c["frequency"] for c in categories},
        images=len(ground_truth["images"]),
        detections=len(records),
    )


def _stats(tables: LvisTables) -> dict[str, float]:
    return {metric.name: metric.of(tables) for metric in METRICS}


def _tables(
    ground_truth: dict[str, Any], records: list[dict[str, Any]], iou_type: str
) -> LvisTables:
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    kept = ("id", "image_id", "category_id", "area", "iscrowd", shape)
    objects = [{k: a[k] for k in kept} for a in ground_truth["annotations"]]
    detections = [
        {k: r[k] for k in ("image_id", "category_id", "score", shape)}
        | {"id": number, "iscrowd": 0, "area": _area(r[shape])}
        for number, r in enumerate(_best(records), start=1)
    ]
    # lvis-api does not see shapes without area; hotcoco does.
    truth, found = (
        hotcoco.COCO(ground_truth | {"annotations": [r for r in shapes if r["area"] > 0]})
        for shapes in (objects, detections)
    )
    evaluation = hotcoco.COCOeval(truth, found, iou_type, lvis_style=True)
    evaluation.params.max_dets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None
    return LvisTables(
        precision=tables["precision"][..., 0],
        recall=tables["recall"][..., 0],
        iou_thresholds=evaluation.params.iou_thrs,
        areas=evaluation.params.area_rng_lbl,
        frequencies=[
            c["frequency"] for c in sorted(ground_truth["categories"], key=lambda c: int(c["id"]))
        ],
    )


def _area(shape: Any) -> float:
    return float(rle.area(shape)) if isinstance(shape, dict) else float(shape[2] * shape[3])


def _best(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `MAX_DETECTIONS` of highest score of each image; of equal scores the first given."""
    by_image = defaultdict(list)
    for record in records:
        by_image[record["image_id"]].append(record)
    return [
        record
        for group in by_image.values()
        for record in sorted(group, key=lambda r: -r["score"])[:MAX_DETECTIONS]
    ]
