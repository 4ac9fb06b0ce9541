"""Precision over recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import hotcoco
import numpy as np

from instseg.evaluation.reasons.matches import Floats

_ALL_AREAS = 0


@dataclass(frozen=True)
class Curves:
    """COCO's interpolated precision at 101 recalls.

    Args:
        recall: 0, 0.01, ..., 1.
        mean: the mean over categories at IoU "0.50", at "0.75" and over "0.50:0.95"; -1 everywhere
            where there is no ground truth.
        categories: by name, at IoU 0.5; categories without ground truth are left out.
    """

    recall: list[float]
    mean: dict[str, list[float]]
    categories: dict[str, list[float]]


def precision_recall(evaluation: hotcoco.COCOeval, names: Sequence[str]) -> Curves:
    """Read the curves from an accumulated evaluation; ``names`` in order of category id."""
    at_50 = _precision(evaluation, [0], _ALL_AREAS)[0]
    means = {"0.50": [0], "0.75": [5], "0.50:0.95": range(10)}
    return Curves(
        recall=[float(r) for r in evaluation.params.rec_thrs],
        mean={n: mean_precision(evaluation, t, _ALL_AREAS).tolist() for n, t in means.items()},
        categories={name: at_50[:, k].tolist() for k, name in enumerate(names) if at_50[0, k] > -1},
    )


def mean_precision(evaluation: hotcoco.COCOeval, thresholds: Sequence[int], area: int) -> Floats:
    """``float64 [101]``, the mean over some IoU thresholds and all categories with ground truth.

    Args:
        evaluation: accumulated.
        thresholds: which of COCO's ten.
        area: which of COCO's four.
    """
    table = _precision(evaluation, thresholds, area)
    known = table[:, :, table[0, 0] > -1]
    return known.mean(axis=(0, 2)) if known.size else np.full(table.shape[1], -1.0)


def _precision(evaluation: hotcoco.COCOeval, thresholds: Sequence[int], area: int) -> Floats:
    """``float64 [T, 101, K]`` for 100 detections an image and category."""
    tables = evaluation.eval
    assert tables is not None
    precision: Floats = tables["precision"][list(thresholds)][..., area, -1]
    return precision
