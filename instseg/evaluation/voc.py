"""Pascal VOC average precision of boxes, and of masks as Hariharan et al. carried it over.

Sources: the VOC development kit (``VOCevaldet.m``; ``VOCap.m`` from 2010 on); Everingham et al.,
The Pascal Visual Object Classes Challenge, 2010, section 4.2; AP^r: Hariharan et al., Simultaneous
Detection and Segmentation, 2014.

Class by class, the detections of all images are taken in order of falling score, equal scores in
the order of the records (the devkit's sort is stable too). Each looks at the object of its class
and image that it overlaps most, the first of equals. It is a true positive if that IoU is at least
the threshold and no detection before it took the object, nothing at all if the object is difficult,
else a false positive: it has no second choice.

The port in py-faster-rcnn asks for an IoU above the threshold; here as in the devkit it may equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from reprlib import repr as short
from typing import Any

import numpy as np
import numpy.typing as npt
from hotcoco.primitives import bbox_iou, mask_iou

from instseg.evaluation.checks import is_finite, raise_defects
from instseg.evaluation.collector import RecordCollector, check_iou_types
from instseg.evaluation.ground_truth import GroundTruthError, image_sizes, prepare_ground_truth
from instseg.evaluation.results import check_results
from instseg.ops import rle

Floats = npt.NDArray[np.float64]

METRIC_NAMES = ("AP", "AP11")
"""The area under the monotone curve (VOC 2010 on), and the mean at 11 recalls (VOC 2007)."""


@dataclass(frozen=True)
class VocCurve:
    """Precision and recall of one class after each of its D detections.

    Args:
        objects: how many objects are to be found, at least 1; difficult ones are not among them.
        scores: ``float64 [D]``, falling.
        precision: ``float64 [D]`` in [0, 1]; 0 before the first detection that counts.
        recall: ``float64 [D]`` in [0, 1], rising.
    """

    objects: int
    scores: Floats
    precision: Floats
    recall: Floats

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "objects": self.objects,
            "scores": self.scores.tolist(),
            "precision": self.precision.tolist(),
            "recall": self.recall.tolist(),
        }


@dataclass(frozen=True)
class VocScores:
    """What one scoring gave. Scores lie in [0, 1], or are -1 where there is no ground truth.

    Args:
        iou_type: "bbox" or "segm".
        iou_threshold: the overlap that made a detection a hit.
        stats: the means over the classes with ground truth (mAP) by `METRIC_NAMES`.
        per_category: the same for each class, by its name, in order of category id.
        curves: the curve of each class with ground truth, by its name.
        images: how many images were scored.
        detections: how many detections there were on them.
    """

    iou_type: str
    iou_threshold: float
    stats: dict[str, float]
    per_category: dict[str, dict[str, float]]
    curves: dict[str, VocCurve]
    images: int
    detections: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        plain = asdict(replace(self, curves={}))
        return plain | {"curves": {name: c.to_dict() for name, c in self.curves.items()}}


class VocEvaluator(RecordCollector):
    """Collects predictions image by image and scores them as Pascal VOC does.

    An annotation's ``difficult`` (0 or 1; 0 where it is missing) is heeded as in the devkit: the
    object need not be found, and finding it costs nothing. COCO's ``iscrowd`` is taken for it.

    Args:
        ground_truth: a COCO dictionary; it is copied, not changed.
        category_ids: the category id of each label, in order.
        iou_types: "bbox", "segm" or both.
        iou_threshold: the IoU, in (0, 1], from which on a detection is a hit.
        pixel_boxes: x + width and y + height are the last pixels inside a box, as the devkit's
            ``xmax`` and ``ymax``, so that its sides are one longer. Boxes in continuous
            coordinates, such as those that ``instseg.data`` makes of VOC's files, give the
            devkit's figures without it. It concerns both ground truth and detections.
        image_ids: score these images alone.

    Raises:
        ValueError: an unknown IoU type, category id or image id; a threshold outside (0, 1].
        GroundTruthError: see `prepare_ground_truth`; a ``difficult`` that is not 0 or 1.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        category_ids: Sequence[int],
        *,
        iou_types: Sequence[str] = ("bbox",),
        iou_threshold: float = 0.5,
        pixel_boxes: bool = False,
        image_ids: Sequence[int] | None = None,
    ) -> None:
        _check_options(iou_types, iou_threshold)
        prepared = prepare_voc(ground_truth, iou_types)
        super().__init__(prepared, category_ids, iou_types, image_ids)
        self._iou_threshold = iou_threshold
        self._pixel_boxes = pixel_boxes

    def compute(self) -> dict[str, VocScores]:
        """Score what was added, by IoU type."""
        records = self.results()
        return {
            t: _score(self.ground_truth, records, t, self._iou_threshold, self._pixel_boxes)
            for t in self.iou_types
        }


def evaluate_voc(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str] = ("bbox",),
    *,
    iou_threshold: float = 0.5,
    pixel_boxes: bool = False,
) -> dict[str, VocScores]:
    """Score result records against a COCO dictionary; neither is changed. See `VocEvaluator`.

    Returns:
        Scores by IoU type.

    Raises:
        ValueError: an unknown IoU type; a threshold outside (0, 1].
        GroundTruthError: see `prepare_voc`.
        ResultsError: see `check_results`.
    """
    _check_options(iou_types, iou_threshold)
    prepared = prepare_voc(ground_truth, iou_types)
    records = check_results(results, prepared, iou_types)
    return {t: _score(prepared, records, t, iou_threshold, pixel_boxes) for t in iou_types}


def prepare_voc(
    ground_truth: Any, iou_types: Sequence[str], *, source: str = "ground truth"
) -> dict[str, Any]:
    """`prepare_ground_truth` that keeps ``difficult``, as a bool, and makes masks run lengths.

    Raises:
        GroundTruthError: see `prepare_ground_truth`; a ``difficult`` that is not 0 or 1.
    """
    prepared = prepare_ground_truth(ground_truth, iou_types, source=source)
    given, defects, annotations = ground_truth["annotations"], [], []
    sizes = image_sizes(prepared)
    for original, annotation in zip(given, prepared["annotations"], strict=True):
        difficult = original.get("difficult", 0)
        if not (isinstance(difficult, int) and difficult in (0, 1)):
            defects.append(
                f"annotation {original['id']}: key 'difficult' must be 0 or 1, "
                f"got {short(difficult)}"
            )
        copy = annotation | {"difficult": bool(difficult or annotation["iscrowd"])}
        size = sizes[annotation["image_id"]]
        if size is not None and isinstance(annotation.get("segmentation"), list):
            polygons = [np.reshape(p, (-1, 2)) for p in annotation["segmentation"]]
            copy["segmentation"] = rle.from_polygons(polygons, size)
        annotations.append(copy)
    raise_defects(GroundTruthError, source, defects, len(given), "annotations")
    return prepared | {"annotations": annotations}


def _check_options(iou_types: Sequence[str], iou_threshold: float) -> None:
    check_iou_types(iou_types)
    if not is_finite(iou_threshold) or not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold!r}")


def _score(
    ground_truth: dict[str, Any],
    records: list[dict[str, Any]],
    iou_type: str,
    iou_threshold: float,
    pixel_boxes: bool,
) -> VocScores:
    objects, found = _by_category(ground_truth["annotations"]), _by_category(records)
    per_category, curves = {}, {}
    for category in sorted(ground_truth["categories"], key=lambda c: int(c["id"])):
        key, name = category["id"], category["name"]
        per_category[name] = dict.fromkeys(METRIC_NAMES, -1.0)
        if not all(o["difficult"] for o in objects[key]):
            ranked = sorted(found[key], key=lambda record: -record["score"])
            overlaps, nearest = _nearest(objects[key], ranked, iou_type, pixel_boxes)
            difficult = np.array([o["difficult"] for o in objects[key]])
            scores = np.array([r["score"] for r in ranked], dtype=np.float64)
            curve = _curve(scores, overlaps >= iou_threshold, nearest, difficult)
            curves[name] = curve
            per_category[name] = {"AP": area_ap(curve), "AP11": eleven_point_ap(curve)}
    known = [per_category[name] for name in curves]
    return VocScores(
        iou_type=iou_type,
        iou_threshold=iou_threshold,
        stats={m: float(np.mean([k[m] for k in known])) if known else -1.0 for m in METRIC_NAMES},
        per_category=per_category,
        curves=curves,
        images=len(ground_truth["images"]),
        detections=len(records),
    )


def _by_category(records: list[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for record in records:
        groups[record["category_id"]].append(record)
    return groups


def _nearest(
    objects: list[dict[str, Any]], ranked: list[dict[str, Any]], iou_type: str, pixel_boxes: bool
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For each detection its highest overlap, and the position in ``objects`` of what it is with.

    On an image without objects of the class the overlap is 0.
    """
    overlaps, nearest = np.zeros(len(ranked)), np.zeros(len(ranked), dtype=np.int64)
    places, rows = defaultdict(list), defaultdict(list)
    for place, item in enumerate(objects):
        places[item["image_id"]].append(place)
    for row, record in enumerate(ranked):
        rows[record["image_id"]].append(row)
    for image_id in places.keys() & rows.keys():
        own, near = rows[image_id], places[image_id]
        pair = [ranked[r] for r in own], [objects[p] for p in near]
        ious = _mask_ious(*pair) if iou_type == "segm" else _box_ious(*pair, pixel_boxes)
        best = ious.argmax(axis=1)
        overlaps[own], nearest[own] = ious.max(axis=1), np.array(near)[best]
    return overlaps, nearest


def _box_ious(
    detections: list[dict[str, Any]], objects: list[dict[str, Any]], pixel_boxes: bool
) -> Floats:
    longer = [0, 0, 1, 1] if pixel_boxes else [0, 0, 0, 0]
    boxes = [np.add([r["bbox"] for r in rs], longer, dtype=float) for rs in (detections, objects)]
    return bbox_iou(boxes[0], boxes[1], [False] * len(objects))


def _mask_ious(detections: list[dict[str, Any]], objects: list[dict[str, Any]]) -> Floats:
    codes = [[r["segmentation"] for r in records] for records in (detections, objects)]
    return mask_iou(codes[0], codes[1], [False] * len(objects))


def _curve(
    scores: Floats,
    hit: npt.NDArray[np.bool_],
    nearest: npt.NDArray[np.int64],
    difficult: npt.NDArray[np.bool_],
) -> VocCurve:
    counts = ~(hit & difficult[nearest])
    hits = np.flatnonzero(hit & counts)
    true = np.zeros(len(scores), dtype=np.bool_)
    true[hits[np.unique(nearest[hits], return_index=True)[1]]] = True  # the first of each object
    found, passed = np.cumsum(true), np.cumsum(counts)
    objects = int((~difficult).sum())
    return VocCurve(objects, scores, found / np.maximum(passed, 1), found / objects)


def area_ap(curve: VocCurve) -> float:
    """The area under precision made monotone: at each recall the best from there on (VOC 2010)."""
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * best))


def eleven_point_ap(curve: VocCurve) -> float:
    """The mean over the recalls 0, 0.1 ... 1 of the best precision from there on (VOC 2007).

    A recall of exactly 3/10 reaches 0.3. Taken as 3 * 0.1, as in the steps of the devkit and its
    ports, that point is one rounding error higher, and only the next recall above would reach it.
    """
    points = np.arange(11) / 10
    reached = [curve.precision[curve.recall >= point] for point in points]
    return float(np.mean([p.max(initial=0.0) for p in reached]))
