"""Boundary IoU of masks, which weighs contours the same at all sizes.

Source: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR
2021. A mask's boundary region is what of it lies within d pixels of its contour, d being 2 % of the
image's diagonal. For average precision the smaller of mask IoU and boundary IoU counts (section 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instseg.evaluation.mask_boxes import decode_within_box
from instseg.evaluation.matching import mask_pair_iou
from instseg.evaluation.tables import Detections, Floats, Ints, Truth
from instseg.structures.geometry import MAX_PIXELS
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
    held, last, own = 0, -1, None
    for p in np.flatnonzero(result >= lowest).tolist():
        det, other = int(pair_det[p]), int(pair_truth[p])
        if det != last or own is None:  # pairs are sorted by detection
            last, own = det, boundary_region(detections.masks[det])
        if other not in objects:
            region = boundary_region(truth.masks[other])
            held += region.pixels.size
            if held > MAX_PIXELS:
                objects, held = {}, region.pixels.size
            objects[other] = region
        crowd = bool(truth.crowd[other])
        result[p] = min(result[p], _iou(own, objects[other], crowd=crowd))
    return result


def boundary_region(code: RLE) -> _Region:
    """The pixels of a mask within d of its contour, the image's border being contour too."""
    distance = max(1, round(DILATION_RATIO * math.hypot(*code["size"])))
    box, pixels = decode_within_box(code)
    boundary = pixels.astype(np.bool_)
    if min(boundary.shape) > 2 * distance:  # else no pixel is further than that from the box's edge
        boundary[distance:-distance, distance:-distance] &= ~_windows(boundary, 2 * distance + 1)
    return _Region(box.top, box.left, boundary)


def _windows(mask: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.bool_]:
    """Which windows are full: ``bool [h - side + 1, w - side + 1]``, by their first corner.

    A window is the union of two smaller ones, so that the steps are as many as doublings.
    """
    for _ in range(2):
        covered = 1
        while covered < side:
            step = min(covered, side - covered)
            mask = mask[:-step] & mask[step:]
            covered += step
        mask = mask.T
    return mask


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
