"""All reasons for a COCO score from one evaluation."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import hotcoco

from instseg.evaluation.collector import SHAPES
from instseg.evaluation.reasons.calibration import Calibration, calibrate
from instseg.evaluation.reasons.confusion import Confusion, confuse
from instseg.evaluation.reasons.curves import Curves, precision_recall
from instseg.evaluation.reasons.difficulty import (
    CrowdingRecall,
    SizeRecall,
    by_crowding,
    by_size,
)
from instseg.evaluation.reasons.errors import ErrorCost, classify, error_costs
from instseg.evaluation.reasons.label_errors import LabelError, likely_label_errors
from instseg.evaluation.reasons.matches import MatchTable, match
from instseg.evaluation.reasons.outcomes import ImageOutcome, judge, outcomes_of_images
from instseg.evaluation.reasons.pictures import Picture, choose_pictures
from instseg.evaluation.reasons.thresholds import Operation, Threshold, operate
from instseg.ops import rle


@dataclass(frozen=True)
class CategoryReasons:
    """One category's share.

    Args:
        objects: annotations that are no crowds.
        detections: result records.
        best: the threshold of highest F1; None if nothing was found.
    """

    objects: int
    detections: int
    best: Threshold | None


@dataclass(frozen=True)
class Reasons:
    """Why the score is what it is; all at IoU 0.5 unless said otherwise.

    Args:
        curves: precision over recall.
        errors: by `ErrorType` in lower case, in its order.
        calibration: whether scores are probabilities.
        confusion: at the operating scores.
        sizes: small, medium, large objects.
        crowding: by the number of objects in the image.
        label_errors: likely errors of the ground truth, the likeliest first, at most 50.
        pictures: images to look at, at most 24.
        per_category: by name, in order of category id.
        operating_scores: by name, the score from which on a detection counts in ``confusion``,
            ``label_errors`` and ``pictures``: the category's best threshold; without one, that of
            all categories together; minus infinity if nothing was found at all.
        outcomes: by image id, what ``pictures`` counts, for the images of ``pictures`` and of
            ``label_errors``.
    """

    curves: Curves
    errors: dict[str, ErrorCost]
    calibration: Calibration
    confusion: Confusion
    sizes: list[SizeRecall]
    crowding: list[CrowdingRecall]
    label_errors: list[LabelError]
    pictures: list[Picture]
    per_category: dict[str, CategoryReasons]
    operating_scores: dict[str, float]
    outcomes: dict[int, ImageOutcome]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them.

        Without ``operating_scores``, which may be infinite, and ``outcomes``, which point into the
        records.
        """
        values = asdict(self)
        del values["operating_scores"], values["outcomes"]
        return values


def find_reasons(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str
) -> Reasons:
    """Evaluate once and explain.

    Args:
        ground_truth: as `prepare_ground_truth` gives it; pictures have file names if its images do.
        results: as `check_results` gives them.
        iou_type: "bbox" or "segm".

    Raises:
        ValueError: another IoU type.
    """
    if iou_type not in SHAPES:
        raise ValueError(f"iou_type must be one of {', '.join(SHAPES)}, got {iou_type!r}")
    truth, detections = _datasets(ground_truth, results, iou_type)
    evaluation = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(detections), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    matches = match(evaluation, ground_truth, results, iou_type)
    errors, operation = classify(matches), operate(matches)
    outcomes = judge(matches, operation)
    label_errors = likely_label_errors(matches, operation, errors, results)
    pictures = choose_pictures(matches, outcomes, errors)
    shown = {p.image_id for p in pictures} | {e.image_id for e in label_errors}
    return Reasons(
        curves=precision_recall(evaluation, matches.names),
        errors=error_costs(matches, errors),
        calibration=calibrate(matches),
        confusion=confuse(matches, operation),
        sizes=by_size(matches, evaluation),
        crowding=by_crowding(matches),
        label_errors=label_errors,
        pictures=pictures,
        per_category=_per_category(matches, operation, ground_truth, results),
        operating_scores=dict(zip(matches.names, operation.score.tolist(), strict=True)),
        outcomes=outcomes_of_images(matches, outcomes, shown),
    )


def _per_category(
    matches: MatchTable,
    operation: Operation,
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
) -> dict[str, CategoryReasons]:
    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    detections = Counter(names[record["category_id"]] for record in results)
    return {
        name: CategoryReasons(objects, detections[name], best)
        for name, objects, best in zip(
            matches.names,
            matches.objects_of_categories().tolist(),
            operation.best,
            strict=True,
        )
    }


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
