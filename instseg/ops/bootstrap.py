"""Average precision of bootstrap replicates (see `instseg.evaluation.bootstrap`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from instseg.ops import backend


def bootstrap_precision(
    found: npt.NDArray[np.bool_],
    ignored: npt.NDArray[np.bool_],
    rank: npt.NDArray[np.int64],
    image: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int32],
    objects: npt.NDArray[np.int64],
    recalls: npt.NDArray[np.float64],
    limits: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Average precision and true positives of one category in B weighted copies of a data set.

    Args:
        found: ``bool [N, T]``: detections, best score first, that found an object at T thresholds.
        ignored: ``bool [N, T]``: those that count neither for nor against.
        rank: ``int64 [N]``, a detection's place among those of its image, from 0.
        image: ``int64 [N]``, which image it lies on.
        weights: ``int32 [images, B]``, how often each copy holds each image.
        objects: ``int64 [B]``, how many objects there are to find in each copy.
        recalls: ``float64 [R]``, where interpolated precision is read off, ascending from 0.
        limits: ``int64 [M]``.

    Returns:
        ``float64 [B, T]``, the mean of the interpolated precision at ``recalls``, and
        ``int64 [B, T, M]``, the true positives among detections with a rank below each limit.
    """
    kernel = backend.kernel("bootstrap_precision", torch.device("cpu"))
    result: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] = kernel(
        np.ascontiguousarray(found),
        np.ascontiguousarray(ignored),
        np.ascontiguousarray(rank, dtype=np.int64),
        np.ascontiguousarray(image, dtype=np.int64),
        np.ascontiguousarray(weights, dtype=np.int32),
        np.ascontiguousarray(objects, dtype=np.int64),
        np.ascontiguousarray(recalls, dtype=np.float64),
        np.ascontiguousarray(limits, dtype=np.int64),
    )
    return result
