"""COCO's result format: one record for each detection, read strictly and written.

A record is ``{"image_id", "category_id", "score", "bbox": [x, y, width, height], "segmentation"}``,
the last a run-length code (https://cocodataset.org/#format-results).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch

from instseg.evaluation.checks import (
    boundary_defect,
    box_defect,
    id_defect,
    is_finite,
    raise_defects,
    rle_defect,
)
from instseg.evaluation.ground_truth import compressed, image_sizes
from instseg.evaluation.json_file import read_json, write_json
from instseg.ops import instance_rles, rle
from instseg.structures import Instances
from instseg.structures.geometry import Size


class ResultsError(ValueError):
    """Results that cannot be scored; the message names file, record and key."""


def load_results(
    path: Path, ground_truth: dict[str, Any], iou_types: Sequence[str]
) -> list[dict[str, Any]]:
    """Read a COCO result file and check it: see `check_results`."""
    return check_results(read_results(path), ground_truth, iou_types, source=str(path))


def read_results(path: Path) -> list[Any]:
    """Parse a result file without looking at its records.

    Raises:
        ResultsError: the file is not JSON, is cut short, or is not a list.
    """
    records = read_json(path, ResultsError)
    if not isinstance(records, list):
        raise ResultsError(
            f"{path}: a COCO result file is a list of detections, got {short(records)}"
        )
    return records


def check_results(
    records: Sequence[Any],
    ground_truth: dict[str, Any],
    iou_types: Sequence[str],
    *,
    source: str = "results",
) -> list[dict[str, Any]]:
    """Check records against the ground truth and copy them in one form.

    Args:
        records: detections of any system.
        ground_truth: a checked COCO dictionary.
        iou_types: "bbox", "segm" or both: what every record must allow to score. Besides "segm",
            "boundary": no mask is too large for its boundary to be made.
        source: what error messages call the records, as a rule the file.

    Returns:
        Records with ``bbox`` (of the mask, where there was none, as in COCO's ``loadRes``) and, if
        masks are scored, ``segmentation`` with compressed counts.

    Raises:
        ResultsError: a record lacks a key, names an unknown image or category, or has a score, box
            or mask that is not finite, negative in size, malformed or of another image size. The
            message says how many records are affected and shows the first few.
    """
    sizes = image_sizes(ground_truth)
    categories = {c["id"] for c in ground_truth["categories"]}
    defects, checked = [], []
    for index, record in enumerate(records):
        if defect := _record_defect(record, sizes, categories, iou_types):
            defects.append(f"record {index}: {defect}")
        else:
            checked.append(_normal(record, sizes[record["image_id"]], iou_types))
    raise_defects(ResultsError, source, defects, len(records), "records")
    return checked


def _record_defect(
    record: Any, sizes: dict[int, Size | None], categories: set[int], iou_types: Sequence[str]
) -> str | None:
    if not isinstance(record, dict):
        return f"must be an object, got {short(record)}"
    if defect := (
        id_defect(record, "image_id", sizes, "the ground truth's images")
        or id_defect(record, "category_id", categories, "the ground truth's categories")
    ):
        return defect
    if "score" not in record:
        return "key 'score' is missing"
    if not is_finite(record["score"]):
        return f"key 'score' must be a finite number, got {short(record['score'])}"
    if "bbox" in record and (defect := box_defect(record["bbox"])):
        return defect
    if "segm" in iou_types or "bbox" not in record:
        return _mask_defect(record, sizes[record["image_id"]], iou_types)
    return None


def _mask_defect(record: dict[str, Any], size: Size | None, iou_types: Sequence[str]) -> str | None:
    if "segmentation" not in record:
        if "segm" in iou_types:
            return "key 'segmentation' is missing, and masks are to be scored (IoU type 'segm')"
        return "keys 'bbox' and 'segmentation' are both missing"
    if not isinstance(record["segmentation"], dict):
        return (
            "key 'segmentation' must be a run-length code {'size', 'counts'}, "
            f"got {short(record['segmentation'])}"
        )
    if size is None:
        return "key 'segmentation': the ground truth does not give this image's height and width"
    defect = rle_defect(record["segmentation"], size)
    if defect is None and "boundary" in iou_types:
        return boundary_defect(record["segmentation"], size)
    return defect


def _normal(record: dict[str, Any], size: Size | None, iou_types: Sequence[str]) -> dict[str, Any]:
    kept = ("image_id", "category_id", "score", "bbox")
    normal: dict[str, Any] = {k: record[k] for k in kept if k in record}
    if size is not None and ("segm" in iou_types or "bbox" not in record):
        code = compressed(record["segmentation"], size)
        if "bbox" not in record:
            normal["bbox"] = _xywh(*rle.to_box(code))
        if "segm" in iou_types:
            normal["segmentation"] = code
    return normal


def _xywh(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    return [x1, y1, x2 - x1, y2 - y1]


def instances_to_results(
    image_id: int, instances: Instances, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections of one image as result records.

    Args:
        image_id: the id of the image in the ground truth.
        instances: N detections with scores, in the coordinates of the original image. Masks are
            pasted and thresholded at 0.5 one by one; None makes records without ``segmentation``.
        category_ids: ``category_ids[label]`` is the category id of a label.

    Returns:
        N records in the order of ``instances``.

    Raises:
        ValueError: there are no scores; a score or box is not finite, a box has a negative side, or
            a label has no category id.
    """
    _check_predictions(image_id, instances, len(category_ids))
    assert instances.scores is not None
    records: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": _xywh(*box), "score": s}
        for label, box, s in zip(
            instances.labels.tolist(),
            instances.boxes.double().tolist(),
            instances.scores.double().tolist(),
            strict=True,
        )
    ]
    if instances.masks is not None:
        for record, code in zip(records, instance_rles(instances), strict=True):
            record["segmentation"] = compressed(code, instances.image_size)
    return records


def _check_predictions(image_id: int, instances: Instances, num_classes: int) -> None:
    where, boxes, labels = f"image {image_id}", instances.boxes, instances.labels
    if instances.scores is None:
        raise ValueError(f"{where}: predictions need scores; these look like ground truth")
    finite = torch.isfinite(instances.scores) & torch.isfinite(boxes).all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{where}: {int((~finite).sum())} of {len(instances)} predictions have a score or box "
            "that is not finite; the model has diverged"
        )
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"{where}: a predicted box has x2 < x1 or y2 < y1")
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"{where}: labels {int(labels.min())} to {int(labels.max())}, but the data set has "
            f"{num_classes} categories"
        )


def write_results(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a COCO result file; whoever reads it sees the whole file or none.

    Raises:
        OSError: the file cannot be written; one that was there before is left as it was.
    """
    write_json(list(records), path)
