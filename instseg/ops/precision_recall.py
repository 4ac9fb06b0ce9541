"""COCO's precision and recall tables of one category (``COCOeval.accumulate``)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from instseg.ops import backend


def precision_recall(
    found: npt.NDArray[np.bool_],
    ignored: npt.NDArray[np.bool_],
    rank: npt.NDArray[np.int64],
    objects: npt.NDArray[np.int64],
    recalls: npt.NDArray[np.float64],
    limits: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Interpolated precision at given recalls, and the highest recall.

    Args:
        found: ``bool [N, T, A]``: detections, best score first, that found an object at T
            thresholds and in A area ranges.
        ignored: ``bool [N, T, A]``: those that count neither for nor against.
        rank: ``int64 [N]``, a detection's place among those of its image, from 0.
        objects: ``int64 [A]``, how many objects there are to find.
        recalls: ``float64 [R]``, ascending.
        limits: ``int64 [M]``: detections of a rank below count.

    Returns:
        ``float64 [T, R, A, M]`` and ``float64 [T, A, M]``; -1 where there is nothing to find.
    """
    kernel = backend.kernel("precision_recall", torch.device("cpu"))
    result: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] = kernel(
        np.ascontiguousarray(found),
        np.ascontiguousarray(ignored),
        np.ascontiguousarray(rank, dtype=np.int64),
        np.ascontiguousarray(objects, dtype=np.int64),
        np.ascontiguousarray(recalls, dtype=np.float64),
        np.ascontiguousarray(limits, dtype=np.int64),
    )
    return result
