"""What objects are taken for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instseg.evaluation.reasons.matches import FOREGROUND_IOU, MatchTable
from instseg.evaluation.reasons.thresholds import Operation

BACKGROUND = "background"


@dataclass(frozen=True)
class Confusion:
    """Counts of the detections that reach their category's threshold, at IoU 0.5.

    Args:
        labels: the categories in order of id, then "background".
        matrix: row: what it is, column: what the detector says. A row sums to the category's
            objects, a column to its detections; the last row holds detections of nothing, the last
            column objects nothing was detected on.
    """

    labels: list[str]
    matrix: list[list[int]]


def confuse(matches: MatchTable, operation: Operation) -> Confusion:
    """Count true positives on the diagonal, then pair what they leave over.

    Each remaining detection, best score first, takes the remaining object of another category that
    it overlaps most, at IoU >= 0.5.
    """
    detections, objects = matches.detections, matches.objects
    size = len(matches.names) + 1
    true = np.full(len(objects.category), size - 1)  # the column of each object
    found = operation.kept & (detections.found >= 0)
    true[detections.found[found]] = detections.category[found]
    taken = np.zeros(len(true), dtype=np.bool_)
    taken[detections.found[found]] = True
    said = np.full(len(detections.score), size - 1)  # the row of each detection
    for detection, target in _pairs(matches, operation):
        if said[detection] == size - 1 and not taken[target]:
            taken[target] = True
            said[detection] = objects.category[target]
            true[target] = detections.category[detection]
    matrix = np.zeros((size, size), dtype=np.int64)
    np.add.at(matrix, (objects.category, true), 1)
    nothing = operation.kept & ~found & (said == size - 1)
    np.add.at(matrix, (size - 1, detections.category[nothing]), 1)
    return Confusion([*matches.names, BACKGROUND], matrix.tolist())


def _pairs(matches: MatchTable, operation: Operation) -> list[tuple[int, int]]:
    """(false positive, object of another category), best score first, then highest IoU."""
    pairs, detections = matches.overlaps, matches.detections
    other = detections.category[pairs.detection] != matches.objects.category[pairs.object]
    usable = other & operation.kept[pairs.detection] & (pairs.iou >= FOREGROUND_IOU)
    detection, target, iou = (c[usable] for c in (pairs.detection, pairs.object, pairs.iou))
    order = np.lexsort((target, -iou, detection, -detections.score[detection]))
    return list(zip(detection[order].tolist(), target[order].tolist(), strict=True))
