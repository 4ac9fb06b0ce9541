"""Error types and the AP that each costs.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020),
sections 2.2 and 2.3; where two types fit one detection, the order of the authors' code decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from hotcoco import metrics

from instseg.evaluation.reasons.matches import (
    BACKGROUND_IOU,
    FOREGROUND_IOU,
    Flags,
    Floats,
    Indices,
    MatchTable,
)


class ErrorType(IntEnum):
    """TIDE's six; the first five are of detections, the last of objects.

    With IoU the highest that a false positive reaches, t_b = 0.1 and t_f = 0.5:

    - localisation: t_b <= IoU < t_f with its category;
    - classification: IoU >= t_f with another category;
    - duplicate: IoU >= t_f with its category, whose object a better detection has found;
    - background: IoU < t_b with all;
    - both (wrong place and wrong category): what is left, t_b <= IoU < t_f with another category;
    - missed: an object not found, on which no error of classification or localisation lies.

    They are tried in this order.
    """

    CLASSIFICATION = 0
    LOCALISATION = 1
    BOTH = 2
    DUPLICATE = 3
    BACKGROUND = 4
    MISSED = 5


@dataclass(frozen=True)
class Errors:
    """The error of each detection and object.

    Args:
        kind: ``int64 [D]``, an `ErrorType`; -1 for a true positive.
        target: ``int64 [D]``, the object an error of classification or localisation lies on; else
            -1.
        missed: ``bool [G]``.
    """

    kind: Indices
    target: Indices
    missed: Flags

    def count(self, error_type: ErrorType) -> int:
        """How many detections, or objects, have this error."""
        found = self.missed if error_type is ErrorType.MISSED else self.kind == error_type
        return int(np.count_nonzero(found))


@dataclass(frozen=True)
class ErrorCost:
    """What the errors of one type do.

    Args:
        count: how many there are.
        delta_ap: by how much mending them all raises AP at IoU 0.5, in [-1, 1]. It is not additive:
            the types' sum is not what is missing to 1.
    """

    count: int
    delta_ap: float


def classify(matches: MatchTable) -> Errors:
    """Sort false positives and objects not found into TIDE's types."""
    same_iou, same = matches.best_overlap(same_category=True)
    other_iou, other = matches.best_overlap(same_category=False)
    kind = np.select(
        [
            matches.detections.found >= 0,
            (same_iou >= BACKGROUND_IOU) & (same_iou < FOREGROUND_IOU),
            other_iou >= FOREGROUND_IOU,
            same_iou >= FOREGROUND_IOU,
            other_iou < BACKGROUND_IOU,
        ],
        [
            -1,
            ErrorType.LOCALISATION,
            ErrorType.CLASSIFICATION,
            ErrorType.DUPLICATE,
            ErrorType.BACKGROUND,
        ],
        default=ErrorType.BOTH,
    ).astype(np.int64)
    target = np.where(kind == ErrorType.LOCALISATION, same, -1)
    target = np.where(kind == ErrorType.CLASSIFICATION, other, target)
    missed = matches.objects.finder < 0
    missed[target[target >= 0]] = False
    return Errors(kind, target, missed)


def error_costs(matches: MatchTable, errors: Errors) -> dict[str, ErrorCost]:
    """Count the errors of each type and mend them, one type at a time.

    Mended (section 2.3), an error of classification or localisation becomes a true positive, or
    vanishes where its object has been found or a better one of its type becomes it; both, duplicate
    and background vanish; missed objects are no longer asked for. The authors' code differs in one
    point: on an object with errors of both types it lets the best of all become the true positive,
    so that mending the other type alone does nothing.
    """
    detections, objects = matches.detections, matches.objects_of_categories()
    base = _mean_ap(
        detections.category,
        detections.score,
        detections.found >= 0,
        objects,
        scored=np.flatnonzero(objects),
    )
    return {
        e.name.lower(): ErrorCost(errors.count(e), _mended(matches, errors, e) - base)
        for e in ErrorType
    }


def _mended(matches: MatchTable, errors: Errors, error_type: ErrorType) -> float:
    """AP at IoU 0.5 without the errors of a type."""
    detections, objects = matches.detections, matches.objects_of_categories()
    scored = np.flatnonzero(objects)
    category, correct = detections.category.copy(), detections.found >= 0
    kept = errors.kind != error_type
    if error_type is ErrorType.MISSED:
        missed = matches.objects.category[errors.missed]
        objects = objects - np.bincount(missed, minlength=len(objects))
    elif error_type in (ErrorType.CLASSIFICATION, ErrorType.LOCALISATION):
        mended = _best_on_each_object(matches, errors, ~kept)
        kept[mended], correct[mended] = True, True
        category[mended] = matches.objects.category[errors.target[mended]]
    return _mean_ap(category[kept], detections.score[kept], correct[kept], objects, scored)


def _best_on_each_object(matches: MatchTable, errors: Errors, chosen: Flags) -> Indices:
    """Of the chosen detections the one of highest score on each object not yet found."""
    rows = np.flatnonzero(chosen)
    rows = rows[matches.objects.finder[errors.target[rows]] < 0]
    rows = rows[np.argsort(-matches.detections.score[rows], kind="stable")]
    _, first = np.unique(errors.target[rows], return_index=True)
    return rows[first]


def _mean_ap(
    category: Indices, score: Floats, correct: Flags, objects: Indices, scored: Indices
) -> float:
    """The mean of COCO's AP over the categories ``scored``; 0 if there are none.

    A category drops out once neither objects nor detections are left: all its objects were missed,
    and mended away. Where every category drops out, no error is left.
    """
    if len(scored) == 0:
        return 0.0
    order = np.argsort(category, kind="stable")
    starts = np.searchsorted(category[order], np.arange(len(objects) + 1))
    values = []
    for k in scored.tolist():
        rows = order[starts[k] : starts[k + 1]]
        if objects[k] or len(rows):
            values.append(metrics.average_precision(score[rows], correct[rows], int(objects[k])))
    return float(np.mean(values)) if values else 1.0
