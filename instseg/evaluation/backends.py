"""The scorers behind COCO's tables: hotcoco for files, pycocotools as the reference.

Both get the same columns and return the same tables. The third scorer,
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
from instseg.evaluation.tables import Detections, ScoringData, Truth, Vocabulary

Backend = Callable[[ScoringData, CocoParams], PrecisionRecall]
"""Scores boxes or masks."""


def score_hotcoco(data: ScoringData, params: CocoParams) -> PrecisionRecall:
    """Score with hotcoco, the COCO protocol in Rust."""
    truth, found = data.truth, data.detections
    # Positions stand for the ids, which may be too large for the floating numbers of results.
    ground_truth = hotcoco.COCO.from_arrays(
        [{"id": i + 1} for i in range(len(data.vocabulary.images))],
        [{"id": k + 1, "name": str(k)} for k in range(len(data.vocabulary.categories))],
        truth.image + 1,
        truth.category + 1,
        truth.box,
        area=truth.area,
        iscrowd=truth.crowd.astype(np.int64),
        segmentation=None if truth.masks is None else list(truth.masks),
    )
    results = ground_truth.load_res(
        np.column_stack((found.image + 1, found.box, found.score, found.category + 1)),
        segmentation=None if found.masks is None else list(found.masks),
    )
    if found.masks is not None:  # hotcoco, as COCO, has put in the boxes' areas
        results.update_anns(ids=np.arange(1, len(found) + 1), area=found.area)
    evaluation = hotcoco.COCOeval(ground_truth, results, data.iou_type)
    evaluation.params.iou_thrs = list(params.iou_thresholds)
    evaluation.params.max_dets = list(params.max_detections)
    evaluation.params.area_rng = [list(r) for r in params.areas.values()]
    evaluation.params.area_rng_lbl = list(params.areas)
    evaluation.params.use_cats = not params.class_agnostic
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None
    return PrecisionRecall(tables["precision"], tables["recall"])


def score_pycocotools(data: ScoringData, params: CocoParams) -> PrecisionRecall:
    """Score with COCO's own code."""
    indexed = []
    with contextlib.redirect_stdout(io.StringIO()):
        for shapes in (data.truth, data.detections):
            coco = pycocotools.coco.COCO()
            coco.dataset = _dataset(shapes, data.vocabulary)
            coco.createIndex()
            indexed.append(coco)
        evaluation = pycocotools.cocoeval.COCOeval(*indexed, data.iou_type)
        evaluation.params.iouThrs = np.array(params.iou_thresholds)
        evaluation.params.maxDets = list(params.max_detections)
        evaluation.params.areaRng = [list(r) for r in params.areas.values()]
        evaluation.params.areaRngLbl = list(params.areas)
        evaluation.params.useCats = int(not params.class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"], evaluation.eval["recall"])


def _dataset(shapes: Truth | Detections, vocabulary: Vocabulary) -> dict[str, Any]:
    """A COCO dictionary of boxes or masks; annotations are numbered from 1, as COCO needs it."""
    masks = [None] * len(shapes) if shapes.masks is None else shapes.masks
    columns = {
        "image_id": vocabulary.images[shapes.image].tolist(),
        "category_id": vocabulary.categories[shapes.category].tolist(),
        "bbox": shapes.box.tolist(),
        "area": shapes.area.tolist(),
        "segmentation": masks,
    }
    if isinstance(shapes, Truth):
        columns["iscrowd"] = shapes.crowd.astype(int).tolist()
    else:
        columns |= {"iscrowd": [0] * len(shapes), "score": shapes.score.tolist()}
    rows = zip(*columns.values(), strict=True)
    return {
        # pycocotools looks sizes up, but needs them for polygons alone.
        "images": [{"id": i, "height": 0, "width": 0} for i in vocabulary.images.tolist()],
        "categories": [{"id": c} for c in vocabulary.categories.tolist()],
        "annotations": [
            {"id": number, **dict(zip(columns, row, strict=True))}
            for number, row in enumerate(rows, start=1)
        ],
    }
