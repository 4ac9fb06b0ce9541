"""The exact Euclidean distance transform."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt


def distance_transform(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The distance of each pixel's centre to that of the nearest pixel of value 0.

    OpenCV's own distances differ in their last bit from call to call: its root is rounded one way
    or the other with the place of the pixels in memory.

    Args:
        mask: ``[H, W]``; has a pixel of 0.

    Returns:
        ``float32 [H, W]``, roots of whole numbers, correctly rounded.
    """
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    squared = np.rint(np.square(distance, dtype=np.float64))
    return np.sqrt(squared).astype(np.float32)
