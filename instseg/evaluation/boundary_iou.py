"""Boundary IoU of masks, which weighs contours the same at all sizes.

Source: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR
2021. A mask's boundary region is what of it lies within d pixels of its contour, d being 2 % of the
image's diagonal. For average precision the smaller of mask IoU and boundary IoU counts (section 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from instseg.evaluation.matching import mask_pair_iou
from instseg.evaluation.tables import Detections, Floats, Ints, Truth
from instseg.ops import rle
from instseg.structures.masks import RLE

DILATION_RATIO = 0.02


@dataclass(frozen=True)
class _Region:
    """The boundary region of a mask, within the mask's box.

    Args:
        top: the box's first row.
        left: its first column.
        pixels: ``bool [h, w]``.
    """

    top: int
    left: int
    pixels: npt.NDArray[np.bool_]


def boundary_pair_iou(
    detections: Detections, truth: Truth, pair_det: Ints, pair_truth: Ints, lowest: float
) -> Floats:
    """The smaller of mask IoU and boundary IoU; see `PairIoU`."""
    assert detections.masks is not None
    assert truth.masks is not None
    result = mask_pair_iou(detections, truth, pair_det, pair_truth, lowest)
    objects: dict[int, _Region] = {}
    last, own = -1, None
    for p in np.flatnonzero(result >= lowest).tolist():
        det, other = int(pair_det[p]), int(pair_truth[p])
        if det != last or own is None:  # pairs are sorted by detection
            last, own = det, boundary_region(detections.masks[det])
        if other not in objects:
            objects[other] = boundary_region(truth.masks[other])
        crowd = bool(truth.crowd[other])
        result[p] = min(result[p], _iou(own, objects[other], crowd=crowd))
    return result


def boundary_region(code: RLE) -> _Region:
    """The pixels of a mask within d of its contour, the image's border being contour too."""
    height, width = code["size"]
    distance = max(1, round(DILATION_RATIO * math.hypot(height, width)))
    x1, y1, x2, y2 = map(int, rle.to_box(code))
    mask = rle.decode(code)[y1:y2, x1:x2]
    framed = np.pad(mask, 1)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return _Region(y1, x1, (mask != 0) & (inner == 0))


def _iou(first: _Region, second: _Region, *, crowd: bool) -> float:
    top, left = max(first.top, second.top), max(first.left, second.left)
    bottom, right = (
        min(r.top + r.pixels.shape[0] for r in (first, second)),
        min(r.left + r.pixels.shape[1] for r in (first, second)),
    )
    if bottom <= top or right <= left:
        return 0.0
    own, other = (
        r.pixels[top - r.top : bottom - r.top, left - r.left : right - r.left]
        for r in (first, second)
    )
    shared = int(np.count_nonzero(own & other))
    size = int(np.count_nonzero(first.pixels))
    union = size if crowd else size + int(np.count_nonzero(second.pixels)) - shared
    return shared / union if union else 0.0
