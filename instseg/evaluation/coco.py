"""COCO average precision and recall of boxes and masks.

Source: https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instseg.evaluation.backends import (
    AREAS,
    BACKENDS,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    PrecisionRecall,
)
from instseg.evaluation.ground_truth import (
    GroundTruthError,
    has_segmentations,
    image_sizes,
    prepare_ground_truth,
)
from instseg.evaluation.json_file import read_json
from instseg.evaluation.results import check_results, instances_to_results, read_results
from instseg.structures import Instances

IOU_TYPES = ("bbox", "segm")


@dataclass(frozen=True)
class Metric:
    """One of COCO's twelve numbers.

    Args:
        name: its short name.
        recall: average recall rather than precision.
        iou: the IoU threshold; None averages over all ten.
        area: one of `AREAS`.
        max_detections: one of `MAX_DETECTIONS`.
    """

    name: str
    recall: bool = False
    iou: float | None = None
    area: str = "all"
    max_detections: int = MAX_DETECTIONS[-1]

    def of(self, tables: PrecisionRecall) -> float:
        """The mean over thresholds, recalls and categories with ground truth; -1 without any."""
        area, limit = AREAS.index(self.area), MAX_DETECTIONS.index(self.max_detections)
        table = (tables.recall if self.recall else tables.precision)[..., area, limit]
        if self.iou is not None:
            table = table[int(np.argmin(np.abs(np.array(IOU_THRESHOLDS) - self.iou)))]
        known = table[table > -1]
        return float(known.mean()) if known.size else -1.0


METRICS = (
    Metric("AP"),
    Metric("AP50", iou=0.5),
    Metric("AP75", iou=0.75),
    Metric("APs", area="small"),
    Metric("APm", area="medium"),
    Metric("APl", area="large"),
    Metric("AR1", recall=True, max_detections=1),
    Metric("AR10", recall=True, max_detections=10),
    Metric("AR100", recall=True, max_detections=100),
    Metric("ARs", recall=True, area="small"),
    Metric("ARm", recall=True, area="medium"),
    Metric("ARl", recall=True, area="large"),
)
"""In the order COCO prints them."""

METRIC_NAMES = tuple(m.name for m in METRICS)


@dataclass(frozen=True)
class CocoScores:
    """What one scoring gave. Scores lie in [0, 1], or are -1 where there is no ground truth.

    Args:
        iou_type: "bbox" or "segm".
        stats: the twelve numbers by `METRIC_NAMES`.
        per_category: the same twelve for each category, by its name, in order of category id.
        images: how many images were scored.
        detections: how many detections there were on them.
    """

    iou_type: str
    stats: dict[str, float]
    per_category: dict[str, dict[str, float]]
    images: int
    detections: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


class CocoEvaluator:
    """Collects predictions image by image and scores them.

    Every image of the ground truth counts, predicted or not, as in COCO.

    Args:
        ground_truth: a COCO dictionary; it is copied, not changed.
        category_ids: the category id of each label, in order.
        iou_types: "bbox", "segm" or both.
        backend: "hotcoco" or "pycocotools".
        image_ids: score these images alone.

    Raises:
        ValueError: an unknown IoU type, backend, category id or image id.
        GroundTruthError: see `prepare_ground_truth`; among others, "segm" without segmentations.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        category_ids: Sequence[int],
        *,
        iou_types: Sequence[str] = IOU_TYPES,
        backend: str = "hotcoco",
        image_ids: Sequence[int] | None = None,
    ) -> None:
        _check_choices(iou_types, backend)
        prepared = prepare_ground_truth(ground_truth, iou_types)
        unknown = set(category_ids) - {c["id"] for c in prepared["categories"]}
        if unknown:
            raise ValueError(f"category ids {sorted(unknown)} are not in the ground truth")
        if image_ids is not None:
            prepared = _restricted(prepared, image_ids)
        self.iou_types = tuple(iou_types)
        self._ground_truth = prepared
        self._category_ids = list(category_ids)
        self._backend = backend
        self._sizes = image_sizes(prepared)
        self._records: dict[int, list[dict[str, Any]]] = {}

    def update(self, image_ids: Sequence[int], predictions: Sequence[Instances]) -> None:
        """Add the detections of some images.

        An image that was added before is passed over: a distributed sampler pads with repeats.

        Args:
            image_ids: ids in the ground truth.
            predictions: for each, detections in the coordinates of the original image.

        Raises:
            ValueError: an id is not among the scored images, the image size is not that of the
                ground truth, masks are to be scored and there are none, or for the reasons of
                `instances_to_results`; the message names the image.
        """
        if len(image_ids) != len(predictions):
            raise ValueError(f"{len(image_ids)} image ids but {len(predictions)} predictions")
        for image_id, instances in zip(image_ids, predictions, strict=True):
            self._check(image_id, instances)
            if image_id not in self._records:
                self._records[image_id] = instances_to_results(
                    image_id, instances, self._category_ids
                )

    def results(self) -> list[dict[str, Any]]:
        """The records so far, by image id; within an image in the order they were given."""
        return [record for _, records in sorted(self._records.items()) for record in records]

    def compute(self) -> dict[str, CocoScores]:
        """Score what was added, by IoU type."""
        return _score(self._ground_truth, self.results(), self.iou_types, self._backend)

    def reset(self) -> None:
        """Forget all predictions."""
        self._records.clear()

    def _check(self, image_id: int, instances: Instances) -> None:
        if image_id not in self._sizes:
            raise ValueError(f"image id {image_id} is not among the images to score")
        size = self._sizes[image_id]
        if size is not None and tuple(instances.image_size) != size:
            raise ValueError(
                f"image {image_id}: predictions are for (height, width) "
                f"{tuple(instances.image_size)}, the ground truth says {size}; map them back to "
                "the original image first"
            )
        if "segm" in self.iou_types and len(instances) and instances.masks is None:
            raise ValueError(
                f"image {image_id}: predictions have no masks; ask for the IoU type 'bbox' alone"
            )


def evaluate_results(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str] = IOU_TYPES,
    backend: str = "hotcoco",
) -> dict[str, CocoScores]:
    """Score result records against a COCO dictionary; neither is changed.

    Returns:
        Scores by IoU type.

    Raises:
        ValueError: an unknown IoU type or backend.
        GroundTruthError: see `prepare_ground_truth`.
        ResultsError: see `check_results`.
    """
    _check_choices(iou_types, backend)
    prepared = prepare_ground_truth(ground_truth, iou_types)
    return _score(prepared, check_results(results, prepared, iou_types), iou_types, backend)


def evaluate_files(
    gt: Path, dt: Path, iou_types: Sequence[str] | None = None, backend: str = "hotcoco"
) -> dict[str, CocoScores]:
    """Score a result file against an annotation file.

    Args:
        gt: COCO annotations.
        dt: COCO results.
        iou_types: "bbox", "segm" or both. None scores boxes, and masks if both files have them.
        backend: "hotcoco" or "pycocotools".

    Returns:
        Scores by IoU type.

    Raises:
        ValueError: as `evaluate_results`; the message names the file.
        OSError: a file cannot be read.
    """
    _check_choices(iou_types or IOU_TYPES, backend)
    truth, records = read_json(gt, GroundTruthError), read_results(dt)
    iou_types = iou_types or _shared_iou_types(truth, records)
    prepared = prepare_ground_truth(truth, iou_types, source=str(gt))
    checked = check_results(records, prepared, iou_types, source=str(dt))
    return _score(prepared, checked, iou_types, backend)


def _shared_iou_types(truth: Any, records: list[Any]) -> tuple[str, ...]:
    # Results of no detections do not say what they are for.
    masks = has_segmentations(records) or not records
    annotations = truth.get("annotations") if isinstance(truth, dict) else None
    return IOU_TYPES if masks and has_segmentations(annotations) else ("bbox",)


def _check_choices(iou_types: Sequence[str], backend: str) -> None:
    unknown = set(iou_types) - set(IOU_TYPES)
    if unknown or not iou_types:
        raise ValueError(f"iou_types must be some of {IOU_TYPES}, got {tuple(iou_types)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {tuple(BACKENDS)}, got {backend!r}")


def _restricted(ground_truth: dict[str, Any], image_ids: Sequence[int]) -> dict[str, Any]:
    chosen = set(image_ids)
    unknown = chosen - {i["id"] for i in ground_truth["images"]}
    if unknown:
        raise ValueError(f"image ids {sorted(unknown)} are not in the ground truth")
    return {
        "images": [i for i in ground_truth["images"] if i["id"] in chosen],
        "categories": ground_truth["categories"],
        "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in chosen],
    }


def _score(
    ground_truth: dict[str, Any],
    records: list[dict[str, Any]],
    iou_types: Sequence[str],
    backend: str,
) -> dict[str, CocoScores]:
    # The backends order the tables' categories by id.
    names = [c["name"] for c in sorted(ground_truth["categories"], key=lambda c: int(c["id"]))]
    scores = {}
    for iou_type in iou_types:
        tables = BACKENDS[backend](ground_truth, records, iou_type, MAX_DETECTIONS)
        scores[iou_type] = CocoScores(
            iou_type=iou_type,
            stats=_stats(tables),
            per_category={
                name: _stats(PrecisionRecall(tables.precision[:, :, [k]], tables.recall[:, [k]]))
                for k, name in enumerate(names)
            },
            images=len(ground_truth["images"]),
            detections=len(records),
        )
    return scores


def _stats(tables: PrecisionRecall) -> dict[str, float]:
    return {metric.name: metric.of(tables) for metric in METRICS}
