"""Detection ops: pure functions that can be used without the rest of the package.

Boxes are ``[N, 4]`` x1 y1 x2 y2 in continuous coordinates, where pixel (row i, column j) covers
[j, j+1) x [i, i+1).
"""

from instseg.ops.boxes import box_area, box_ioa, box_iou, clip_boxes, large_boxes
from instseg.ops.masks import instance_rles, mask_targets
from instseg.ops.nms import batched_nms, nms
from instseg.ops.paste import masks_to_rle, paste_masks
from instseg.ops.roi_align import boxes_to_rois, roi_align

__all__ = [
    "batched_nms",
    "box_area",
    "box_ioa",
    "box_iou",
    "boxes_to_rois",
    "clip_boxes",
    "instance_rles",
    "large_boxes",
    "mask_targets",
    "masks_to_rle",
    "nms",
    "paste_masks",
    "roi_align",
]
