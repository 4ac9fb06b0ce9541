"""Boundary F-score of class maps: do the outlines lie within a few pixels of the true ones?

Source: Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic
segmentation?", BMVC 2013, section 3: for each image and class, precision is the share of the
predicted boundary within a distance of the true one, recall the share of the true boundary within
that distance of the predicted one, and F their harmonic mean; distance 0.75 % of the diagonal. As
in the DAVIS benchmark (Perazzi et al., CVPR 2016) the distance is rounded up to whole pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from instseg.structures.geometry import Size


def tolerance_in_pixels(tolerance: float, size: Size) -> float:
    """The distance in pixels that a tolerance means on an image of ``size`` (height, width).

    Raises:
        ValueError: it is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(
            f"boundary_tolerance must be a fraction of the diagonal in [0, 1) or pixels >= 1, "
            f"got {tolerance}"
        )
    return math.ceil(tolerance * math.hypot(*size)) if tolerance < 1 else tolerance


def boundary_pixels(
    class_map: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Where the class changes: ``bool [H, W]``.

    A pixel is on the boundary of its class if one of its four neighbours is of another class. The
    image's edge is no boundary, nor is the edge of an area that is not ``valid``.
    """
    boundary = np.zeros(class_map.shape, dtype=bool)
    down = (class_map[1:] != class_map[:-1]) & valid[1:] & valid[:-1]
    right = (class_map[:, 1:] != class_map[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    boundary[1:] |= down
    boundary[:-1] |= down
    boundary[:, 1:] |= right
    boundary[:, :-1] |= right
    return boundary


def boundary_scores(
    prediction: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    valid: npt.NDArray[np.bool_],
    tolerance: float,
) -> dict[int, tuple[float, float, float]]:
    """Boundary precision, recall and F of each class in one image.

    Args:
        prediction: class ids ``[H, W]``.
        target: the true ones, of the same size.
        valid: ``bool [H, W]``; the other pixels are taken out of both maps.
        tolerance: in pixels if >= 1, otherwise a fraction of the diagonal, rounded up.

    Returns:
        (precision, recall, F) by class id, for the classes with a boundary in either map. Without
        a predicted boundary precision is -1, without a true one recall is; F is 0 in both cases.
    """
    distance = tolerance_in_pixels(tolerance, (target.shape[0], target.shape[1]))
    predicted, true = boundary_pixels(prediction, valid), boundary_pixels(target, valid)
    scores = {}
    for class_id in np.union1d(prediction[predicted], target[true]).tolist():
        a, b = predicted & (prediction == class_id), true & (target == class_id)
        rows, columns = (np.flatnonzero((a | b).any(axis=axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        precision, recall = (
            _share_near(a[box], b[box], distance),
            _share_near(b[box], a[box], distance),
        )
        matched = precision > 0 and recall > 0
        f = 2 * precision * recall / (precision + recall) if matched else 0.0
        scores[class_id] = (precision, recall, f)
    return scores


def _share_near(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], distance: float) -> float:
    """The share of ``a``'s pixels with one of ``b`` in Euclidean distance; -1 if ``a`` is empty."""
    if not a.any():
        return -1.0
    if not b.any():
        return 0.0
    to_b = cv2.distanceTransform((~b).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((to_b[a] <= distance).mean())
