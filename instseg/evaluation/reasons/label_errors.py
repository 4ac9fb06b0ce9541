"""Likely errors of the ground truth, judged by detections that contradict it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import primitives

from instseg.evaluation.reasons.errors import Errors, ErrorType
from instseg.evaluation.reasons.matches import FOREGROUND_IOU, MatchTable
from instseg.evaluation.reasons.thresholds import Operation

MOST = 50
CONFIDENT = 0.5
SAME_PLACE_IOU = 0.7


@dataclass(frozen=True)
class LabelError:
    """A place to look at.

    Args:
        image_id: the image's id.
        kind: "missing" for an object without an annotation, "wrong label" for one annotated as
            another category.
        category: what the annotation says; of a missing one, what is suggested.
        score: the detection's.
        suggests: the detection's category.
        box: the detection's, [x, y, width, height].
    """

    image_id: int
    kind: str
    category: str
    score: float
    suggests: str
    box: list[float]


def likely_label_errors(
    matches: MatchTable, operation: Operation, errors: Errors, results: list[dict[str, Any]]
) -> list[LabelError]:
    """At most `MOST`, best score first.

    A detection speaks against the ground truth if its score reaches its category's threshold and
    `CONFIDENT`, and it

    - overlaps no object (a "background" error): an annotation is missing; or
    - has IoU >= `SAME_PLACE_IOU` with an object of another category that no detection of that
      category found at its threshold (a "classification" error): its label is wrong.

    Each place, and each object, is named once, by its best detection.
    """
    named: dict[int, list[list[float]]] = defaultdict(list)
    likely: list[LabelError] = []
    for row, kind, category in _suspects(matches, operation, errors):
        image = int(matches.detections.image[row])
        box = [float(v) for v in results[matches.detections.record[row]]["bbox"]]
        if _on_any(box, named[image]):
            continue
        named[image].append(box)
        likely.append(
            LabelError(
                image_id=matches.images[image]["id"],
                kind=kind,
                category=matches.names[category],
                score=float(matches.detections.score[row]),
                suggests=matches.names[matches.detections.category[row]],
                box=box,
            )
        )
        if len(likely) == MOST:
            break
    return likely


def _suspects(
    matches: MatchTable, operation: Operation, errors: Errors
) -> Iterator[tuple[int, str, int]]:
    """(detection, kind, category of the annotation), best score first."""
    detections, objects = matches.detections, matches.objects
    iou, other = matches.best_overlap(same_category=False)
    confident = operation.kept & (detections.score >= CONFIDENT)
    found = np.append(objects.finder >= 0, False)  # the last is for detections on no object
    found[:-1][found[:-1]] = operation.kept[objects.finder[objects.finder >= 0]]
    missing = confident & (errors.kind == ErrorType.BACKGROUND)
    wrong = confident & (errors.kind == ErrorType.CLASSIFICATION)
    wrong &= (iou >= SAME_PLACE_IOU) & ~found[other]
    rows = np.flatnonzero(missing | wrong)
    for row in rows[np.argsort(-detections.score[rows], kind="stable")].tolist():
        if missing[row]:
            yield row, "missing", int(detections.category[row])
        else:
            yield row, "wrong label", int(objects.category[other[row]])


def _on_any(box: list[float], others: list[list[float]]) -> bool:
    if not others:
        return False
    iou = primitives.bbox_iou(np.array([box]), np.array(others), np.zeros(len(others), np.bool_))
    return bool(iou.max() >= FOREGROUND_IOU)
