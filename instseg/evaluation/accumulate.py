"""Precision and recall tables out of matches (``COCOeval.accumulate``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instseg.evaluation.matching import Matches
from instseg.evaluation.params import CocoParams
from instseg.evaluation.tables import Floats, Ints
from instseg.ops.precision_recall import precision_recall

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
    if np.all(np.diff(matches.image) >= 0):  # sorting is stable
        order = np.lexsort((-matches.score, matches.category))
    else:  # joined parts
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
    counts, limits = objects(matches, categories), np.array(params.max_detections)
    for k, chosen in enumerate(by_category(matches, categories)):
        if counts[k].any():
            precision[:, :, k], recall[:, k] = precision_recall(
                matches.found[chosen],
                matches.ignored[chosen],
                matches.rank[chosen].astype(np.int64),
                counts[k],
                RECALLS,
                limits,
            )
    return PrecisionRecall(precision, recall)
