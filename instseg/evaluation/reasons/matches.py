"""Which detection found which object at IoU 0.5, and what the others overlap: as columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt

from instseg.ops import rle

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

FOREGROUND_IOU = 0.5
"""From here on a detection and an object are one: TIDE's t_f."""

BACKGROUND_IOU = 0.1
"""Below it they have nothing to do with each other: TIDE's t_b."""


@dataclass(frozen=True)
class Detections:
    """The D detections that COCO counts, in order of image id; the rest is left out.

    Left out are those beyond the 100 best of their image and category, and those that crowds
    excuse.

    Args:
        record: ``int64 [D]``, position in the results.
        image: ``int64 [D]``, index in the images in order of id.
        category: ``int64 [D]``, index in the categories in order of id.
        score: ``float64 [D]``.
        found: ``int64 [D]``, index of the object it found; -1 for a false positive.
    """

    record: Indices
    image: Indices
    category: Indices
    score: Floats
    found: Indices


@dataclass(frozen=True)
class Objects:
    """The G annotations that are no crowds, in order of image id.

    Args:
        id: ``int64 [G]``, the annotation's id.
        image: ``int64 [G]``, index in the images in order of id.
        category: ``int64 [G]``, index in the categories in order of id.
        area: ``float64 [G]``, in pixels.
        finder: ``int64 [G]``, index of the detection that found it; -1 if none did.
    """

    id: Indices
    image: Indices
    category: Indices
    area: Floats
    finder: Indices


@dataclass(frozen=True)
class Overlaps:
    """The P pairs of a false positive and an object in its image with IoU >= `BACKGROUND_IOU`.

    Args:
        detection: ``int64 [P]``, index in `Detections`, ascending.
        object: ``int64 [P]``, index in `Objects`, of any category.
        iou: ``float64 [P]``.
    """

    detection: Indices
    object: Indices
    iou: Floats


@dataclass(frozen=True)
class MatchTable:
    """All that the reasons are read from.

    Args:
        images: the ground truth's images in order of id.
        names: the categories' names in order of id.
        detections: what COCO counts.
        objects: what was to be found.
        overlaps: what the false positives lie on.
    """

    images: list[dict[str, Any]]
    names: list[str]
    detections: Detections
    objects: Objects
    overlaps: Overlaps

    def best_overlap(self, *, same_category: bool) -> tuple[Floats, Indices]:
        """The object that each false positive overlaps most, among those of its category or others.

        Returns:
            IoU ``float64 [D]``, 0 where it is below `BACKGROUND_IOU`, and object ``int64 [D]``, -1
            there. Of equal objects it is the first.
        """
        pairs = self.overlaps
        same = self.detections.category[pairs.detection] == self.objects.category[pairs.object]
        chosen = np.flatnonzero(same == same_category)
        # Written from the smallest IoU to the largest, the last write of a detection stays.
        chosen = chosen[np.lexsort((-pairs.object[chosen], pairs.iou[chosen]))]
        iou = np.zeros(len(self.detections.score))
        best = np.full(len(iou), -1)
        iou[pairs.detection[chosen]] = pairs.iou[chosen]
        best[pairs.detection[chosen]] = pairs.object[chosen]
        return iou, best

    def objects_of_categories(self) -> Indices:
        """``int64 [K]``, how many objects each category has."""
        return np.bincount(self.objects.category, minlength=len(self.names))


def match(
    evaluation: hotcoco.COCOeval,
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
) -> MatchTable:
    """Read the matches out of an evaluation and measure the overlaps that it does not keep.

    Args:
        evaluation: evaluated; its detections are numbered from 1 in the order of ``results``.
        ground_truth: what it was made from, prepared.
        results: what it was made from, checked.
        iou_type: "bbox" or "segm".
    """
    # Nothing scores above infinity, so hotcoco's own search for label errors has nothing to do.
    diagnostics = evaluation.image_diagnostics(iou_thr=FOREGROUND_IOU, score_thr=float("inf"))
    images = sorted(ground_truth["images"], key=lambda image: image["id"])
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    image_ids = _column(image["id"] for image in images)
    category_ids = _column(category["id"] for category in categories)

    image = np.searchsorted(image_ids, _column(r["image_id"] for r in results))
    record = _column(diagnostics["dt_status"]) - 1
    record = record[np.lexsort((record, image[record]))]
    annotations = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    annotations.sort(key=lambda a: (a["image_id"], a["id"]))
    row_of_annotation = {a["id"]: row for row, a in enumerate(annotations)}
    row_of_record = np.full(len(results), -1)
    row_of_record[record] = np.arange(len(record))
    found, finder = np.full(len(record), -1), np.full(len(annotations), -1)
    finding = row_of_record[_column(diagnostics["dt_match"]) - 1]
    target = _column(row_of_annotation[i] for i in diagnostics["dt_match"].values())
    found[finding], finder[target] = target, finding

    category = np.searchsorted(category_ids, _column(r["category_id"] for r in results))
    score = np.fromiter((r["score"] for r in results), dtype=np.float64)
    detections = Detections(record, image[record], category[record], score[record], found)
    objects = Objects(
        id=_column(a["id"] for a in annotations),
        image=np.searchsorted(image_ids, _column(a["image_id"] for a in annotations)),
        category=np.searchsorted(category_ids, _column(a["category_id"] for a in annotations)),
        area=np.fromiter((a["area"] for a in annotations), dtype=np.float64),
        finder=finder,
    )
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    overlaps = _overlaps(
        detections, objects, [r[shape] for r in results], [a[shape] for a in annotations], images
    )
    names = [category["name"] for category in categories]
    return MatchTable(images, names, detections, objects, overlaps)


def _column(values: Iterable[int]) -> Indices:
    return np.fromiter(values, dtype=np.int64)


def _overlaps(
    detections: Detections,
    objects: Objects,
    found_shapes: list[Any],
    true_shapes: list[Any],
    images: list[dict[str, Any]],
) -> Overlaps:
    false = np.flatnonzero(detections.found < 0)
    edges = np.arange(len(images) + 1)
    first_false = np.searchsorted(detections.image[false], edges)
    first_object = np.searchsorted(objects.image, edges)
    parts: list[tuple[Indices, Indices, Floats]] = []
    for i, image in enumerate(images):
        rows = false[first_false[i] : first_false[i + 1]]
        start, stop = int(first_object[i]), int(first_object[i + 1])
        if len(rows) == 0 or start == stop:
            continue
        records = detections.record[rows].tolist()
        iou = _iou([found_shapes[r] for r in records], true_shapes[start:stop], image)
        row, column = np.nonzero(iou >= BACKGROUND_IOU)
        parts.append((rows[row], start + column, iou[row, column]))
    if not parts:
        return Overlaps(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    detection, target, values = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Overlaps(detection, target, values)


def _iou(found: list[Any], true: list[Any], image: dict[str, Any]) -> Floats:
    """``float64 [D, G]``: plain IoU of two lists of boxes or of masks in any form COCO knows."""
    no_crowds = np.zeros(len(true), dtype=np.bool_)
    if isinstance(found[0], dict):
        size = (image["height"], image["width"])
        codes = [t if isinstance(t, dict) else rle.from_polygons(_points(t), size) for t in true]
        return hotcoco.primitives.mask_iou(found, codes, no_crowds)
    return hotcoco.primitives.bbox_iou(
        np.array(found, dtype=np.float64), np.array(true, dtype=np.float64), no_crowds
    )


def _points(polygons: list[list[float]]) -> list[Floats]:
    return [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in polygons]
