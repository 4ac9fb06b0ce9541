"""The scorers behind COCO AP: hotcoco for speed, pycocotools as the reference.

Both get the same slim copies of ground truth and detections and return the same tables.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt
import pycocotools.coco
import pycocotools.cocoeval

from instseg.ops import rle

MAX_DETECTIONS = (1, 10, 100)
"""COCO's limits on detections for each image and category."""

IOU_THRESHOLDS = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
"""COCO's ten thresholds."""

AREAS = ("all", "small", "medium", "large")
"""COCO's ranges of object area: up to 32^2, up to 96^2 and above, in pixels."""


@dataclass(frozen=True)
class PrecisionRecall:
    """COCO's accumulated tables; -1 where there is no ground truth.

    Args:
        precision: ``float64 [T, R, K, A, M]`` at T = 10 `IOU_THRESHOLDS`, R = 101 recalls, K
            categories in order of id, A = 4 `AREAS`, M limits on detections.
        recall: ``float64 [T, K, A, M]``, the highest recall reached.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]


Backend = Callable[[dict[str, Any], list[dict[str, Any]], str, Sequence[int]], PrecisionRecall]
"""(prepared ground truth, checked results, IoU type, limits on detections) -> tables."""


def score_hotcoco(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> PrecisionRecall:
    """Score with hotcoco, the COCO protocol in Rust."""
    truth, detections = _datasets(ground_truth, results, iou_type)
    evaluation = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(detections), iou_type)
    evaluation.params.max_dets = list(max_detections)
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None
    return PrecisionRecall(tables["precision"], tables["recall"])


def score_pycocotools(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> PrecisionRecall:
    """Score with COCO's own code."""
    indexed = []
    with contextlib.redirect_stdout(io.StringIO()):
        for dataset in _datasets(ground_truth, results, iou_type):
            coco = pycocotools.coco.COCO()
            coco.dataset = dataset
            coco.createIndex()
            indexed.append(coco)
        evaluation = pycocotools.cocoeval.COCOeval(*indexed, iou_type)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"], evaluation.eval["recall"])


BACKENDS: dict[str, Backend] = {"hotcoco": score_hotcoco, "pycocotools": score_pycocotools}


def _datasets(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections as COCO dictionaries that hold one shape, the scored one.

    For masks a detection's area, which sorts it into small, medium and large, is that of its mask:
    COCO's ``loadRes`` takes the box's as soon as records carry a box too.
    """
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    kept = ("id", "image_id", "category_id", "area", "iscrowd", shape)
    common = {"images": ground_truth["images"], "categories": ground_truth["categories"]}
    truth = [{k: a[k] for k in kept} for a in ground_truth["annotations"]]
    detections = []
    for number, record in enumerate(results, start=1):
        if iou_type == "bbox":
            area = float(record["bbox"][2] * record["bbox"][3])
        else:
            area = float(rle.area(record["segmentation"]))
        detections.append(
            {
                "id": number,
                "image_id": record["image_id"],
                "category_id": record["category_id"],
                "score": record["score"],
                "iscrowd": 0,
                "area": area,
                shape: record[shape],
            }
        )
    return common | {"annotations": truth}, common | {"annotations": detections}
