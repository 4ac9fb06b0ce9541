"""Precision and recall tables out of matches (``COCOeval.accumulate``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instseg.evaluation.matching import Matches
from instseg.evaluation.params import CocoParams
from instseg.evaluation.tables import Bools, Floats, Ints

RECALLS = np.linspace(0.0, 1.0, 101)
"""COCO's recalls at which precision is read off."""


@dataclass(frozen=True)
class PrecisionRecall:
    """COCO's accumulated tables; -1 where there is no ground truth.

    Args:
        precision: ``float64 [T, R, K, A, M]``: T IoU thresholds, R = 101 recalls, K categories in
            order of id, A area ranges, M limits on detections.
        recall: ``float64 [T, K, A, M]``, the highest recall reached.
    """

    precision: Floats
    recall: Floats

    def of_category(self, k: int) -> PrecisionRecall:
        """The tables of one category."""
        return PrecisionRecall(self.precision[:, :, [k]], self.recall[:, [k]])


def by_category(matches: Matches, categories: int) -> list[Ints]:
    """For each category its detections, best score first.

    Among equal scores the lower image comes first, then the better rank: COCO's order, whatever the
    order in which parts were joined.
    """
    order = np.lexsort((matches.rank, matches.image, -matches.score, matches.category))
    bounds = np.searchsorted(matches.category[order], np.arange(categories + 1))
    return [order[bounds[k] : bounds[k + 1]] for k in range(categories)]


def objects(matches: Matches, categories: int) -> Ints:
    """``int64 [K, A]``: how many objects count in each category and area range."""
    areas = matches.truth_ignored.shape[1]
    counts = np.zeros((categories, areas), np.int64)
    np.add.at(counts, matches.truth_category, ~matches.truth_ignored)
    return counts


def accumulate(matches: Matches, params: CocoParams, categories: int) -> PrecisionRecall:
    """COCO's tables of ``categories`` categories."""
    shape = (categories, len(params.areas), len(params.max_detections))
    thresholds = len(params.iou_thresholds)
    precision = np.full((thresholds, len(RECALLS), *shape), -1.0)
    recall = np.full((thresholds, *shape), -1.0)
    counts = objects(matches, categories)
    for k, found_here in enumerate(by_category(matches, categories)):
        for a, m in np.ndindex(shape[1:]):
            if counts[k, a] == 0:
                continue
            chosen = found_here[matches.rank[found_here] < params.max_detections[m]]
            counted = ~matches.ignored[chosen, :, a]
            hits = matches.found[chosen, :, a] & counted
            for t in range(thresholds):
                curve = _curve(hits[:, t], counted[:, t], counts[k, a])
                precision[t, :, k, a, m], recall[t, k, a, m] = curve
    return PrecisionRecall(precision, recall)


def _curve(hits: Bools, counted: Bools, objects: int) -> tuple[Floats, float]:
    """Interpolated precision at `RECALLS`, and the highest recall.

    Precision is highest where a detection hits, so those alone are looked at.
    """
    places = np.flatnonzero(hits)
    if len(places) == 0:
        return np.zeros(len(RECALLS)), 0.0
    true = np.arange(1.0, len(places) + 1)
    # COCO's own way of adding up, with its guard against 0 / 0, for equal rounding.
    false = np.cumsum(counted, dtype=np.float64)[places] - true
    precision = true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    reached = true / objects
    at = np.searchsorted(reached, RECALLS, side="left")
    return np.append(precision, 0.0)[at], float(reached[-1])
