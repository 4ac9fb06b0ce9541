"""The score from which on a category's detections are worth keeping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instseg.evaluation.reasons.matches import Flags, Floats, MatchTable


@dataclass(frozen=True)
class Threshold:
    """Where F1 at IoU 0.5 is highest; of equal maxima the one of highest score.

    Args:
        score: detections of at least this score are kept.
        f1: 2 TP / (detections + objects), in (0, 1].
        precision: TP / detections, in (0, 1].
        recall: TP / objects, in (0, 1].
    """

    score: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Operation:
    """The detector as one would use it: each category cut at its best threshold.

    Args:
        best: by category in order of id; None where no detection found an object.
        score: ``float64 [K]``, the threshold in use: where a category has no best one, that of all
            categories taken together; minus infinity if nothing was found at all.
        kept: ``bool [D]``, the detections that reach it.
    """

    best: list[Threshold | None]
    score: Floats
    kept: Flags


def best_threshold(score: Floats, correct: Flags, objects: int) -> Threshold | None:
    """The threshold of highest F1; None if nothing is correct.

    Args:
        score: ``float64 [D]``, in any order; equal scores are kept or dropped together.
        correct: ``bool [D]``, which are true positives. Greedy matching in order of score makes
            that independent of the threshold.
        objects: how many there were to find.
    """
    if not correct.any():
        return None
    order = np.argsort(-score, kind="stable")
    ordered, true = score[order], np.cumsum(correct[order])
    last_of_equals = np.append(ordered[1:] != ordered[:-1], True)
    ordered, true = ordered[last_of_equals], true[last_of_equals]
    kept = np.flatnonzero(last_of_equals) + 1
    f1 = 2 * true / (kept + objects)
    i = int(np.argmax(f1))
    return Threshold(
        float(ordered[i]), float(f1[i]), float(true[i] / kept[i]), float(true[i] / objects)
    )


def operate(matches: MatchTable) -> Operation:
    """Find each category's best threshold and cut there."""
    detections, objects = matches.detections, matches.objects_of_categories()
    correct = detections.found >= 0
    order = np.argsort(detections.category, kind="stable")
    starts = np.searchsorted(detections.category[order], np.arange(len(objects) + 1))
    best = []
    for k, count in enumerate(objects.tolist()):
        rows = order[starts[k] : starts[k + 1]]
        best.append(best_threshold(detections.score[rows], correct[rows], count))
    overall = best_threshold(detections.score, correct, int(objects.sum()))
    fallback = -np.inf if overall is None else overall.score
    score = np.array([fallback if b is None else b.score for b in best])
    return Operation(best, score, detections.score >= score[detections.category])
