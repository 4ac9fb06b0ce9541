"""The scorers behind COCO's tables: hotcoco for files, pycocotools as the reference.

Both get the same slim copies of ground truth and detections and return the same tables. The third,
`instseg.evaluation.accumulate`, works on matches made while predictions stream in.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from instseg.evaluation.accumulate import PrecisionRecall
from instseg.evaluation.params import CocoParams
from instseg.ops import rle

Backend = Callable[[dict[str, Any], list[dict[str, Any]], str, CocoParams], PrecisionRecall]
"""(prepared ground truth, checked results, "bbox" or "segm", parameters) -> tables."""


def score_hotcoco(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    params: CocoParams,
) -> PrecisionRecall:
    """Score with hotcoco, the COCO protocol in Rust."""
    evaluation = hotcoco_evaluation(ground_truth, results, iou_type, params)
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None
    return PrecisionRecall(tables["precision"], tables["recall"])


def hotcoco_evaluation(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    params: CocoParams,
) -> hotcoco.COCOeval:
    """hotcoco's evaluation of the data, not yet run."""
    truth, detections = datasets(ground_truth, results, iou_type)
    evaluation = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(detections), iou_type)
    evaluation.params.iou_thrs = list(params.iou_thresholds)
    evaluation.params.max_dets = list(params.max_detections)
    evaluation.params.area_rng = [list(r) for r in params.areas.values()]
    evaluation.params.area_rng_lbl = list(params.areas)
    evaluation.params.use_cats = not params.class_agnostic
    return evaluation


def score_pycocotools(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    params: CocoParams,
) -> PrecisionRecall:
    """Score with COCO's own code."""
    indexed = []
    with contextlib.redirect_stdout(io.StringIO()):
        for dataset in datasets(ground_truth, results, iou_type):
            coco = pycocotools.coco.COCO()
            coco.dataset = dataset
            coco.createIndex()
            indexed.append(coco)
        evaluation = pycocotools.cocoeval.COCOeval(*indexed, iou_type)
        evaluation.params.iouThrs = np.array(params.iou_thresholds)
        evaluation.params.maxDets = list(params.max_detections)
        evaluation.params.areaRng = [list(r) for r in params.areas.values()]
        evaluation.params.areaRngLbl = list(params.areas)
        evaluation.params.useCats = int(not params.class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"], evaluation.eval["recall"])


def datasets(
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


_datasets = datasets
