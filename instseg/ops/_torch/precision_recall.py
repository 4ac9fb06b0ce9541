"""COCO's precision and recall tables of one category, in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def precision_recall(
    found: Bools, ignored: Bools, rank: Ints, objects: Ints, recalls: Floats, limits: Ints
) -> tuple[Floats, Floats]:
    """See `instseg.ops.precision_recall`."""
    thresholds, areas = found.shape[1:]
    precision = np.full((thresholds, len(recalls), areas, len(limits)), -1.0)
    recall = np.full((thresholds, areas, len(limits)), -1.0)
    for a, m in np.ndindex(areas, len(limits)):
        if objects[a] == 0:
            continue
        chosen = rank < limits[m]
        counted = ~ignored[chosen, :, a]
        hits = found[chosen, :, a] & counted
        for t in range(thresholds):
            curve = _curve(hits[:, t], counted[:, t], int(objects[a]), recalls)
            precision[t, :, a, m], recall[t, a, m] = curve
    return precision, recall


def _curve(hits: Bools, counted: Bools, objects: int, recalls: Floats) -> tuple[Floats, float]:
    """Precision is highest where a detection hits, so those alone are looked at."""
    places = np.flatnonzero(hits)
    if len(places) == 0:
        return np.zeros(len(recalls)), 0.0
    true = np.arange(1.0, len(places) + 1)
    # COCO's own way of adding up, with its guard against 0 / 0, for equal rounding.
    false = np.cumsum(counted, dtype=np.float64)[places] - true
    precision = true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    reached = true / objects
    at = np.searchsorted(reached, recalls, side="left")
    return np.append(precision, 0.0)[at], float(reached[-1])
