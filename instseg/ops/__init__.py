"""Detection ops: pure functions that can be used without the rest of the package.

Boxes are ``[N, 4]`` x1 y1 x2 y2 in continuous coordinates, where pixel (row i, column j) covers
[j, j+1) x [i, i+1).
"""

from instseg.ops.backend import BackendError, available_backends, use_backend
from instseg.ops.boxes import (
    box_area,
    box_ioa,
    box_iou,
    box_iou_elementwise,
    clip_boxes,
    complete_box_iou,
    complete_box_iou_elementwise,
    distance_box_iou,
    distance_box_iou_elementwise,
    generalized_box_iou,
    generalized_box_iou_elementwise,
    large_boxes,
)
from instseg.ops.focal_loss import sigmoid_focal_loss
from instseg.ops.masks import instance_rles, mask_targets
from instseg.ops.matrix_nms import matrix_nms
from instseg.ops.nms import batched_nms, nms, nms_mask
from instseg.ops.paste import masks_to_rle, paste_masks
from instseg.ops.ps_roi import PSRoIAlign, PSRoIPool, ps_roi_align, ps_roi_pool
from instseg.ops.roi_align import (
    MultiscaleRoIAlign,
    RoIAlign,
    assign_levels,
    boxes_to_rois,
    multiscale_roi_align,
    roi_align,
)
from instseg.ops.roi_pool import RoIPool, roi_pool
from instseg.ops.soft_nms import soft_nms

__all__ = [
    "BackendError",
    "MultiscaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "assign_levels",
    "available_backends",
    "batched_nms",
    "box_area",
    "box_ioa",
    "box_iou",
    "box_iou_elementwise",
    "boxes_to_rois",
    "clip_boxes",
    "complete_box_iou",
    "complete_box_iou_elementwise",
    "distance_box_iou",
    "distance_box_iou_elementwise",
    "generalized_box_iou",
    "generalized_box_iou_elementwise",
    "instance_rles",
    "large_boxes",
    "mask_targets",
    "masks_to_rle",
    "matrix_nms",
    "multiscale_roi_align",
    "nms",
    "nms_mask",
    "paste_masks",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "soft_nms",
    "use_backend",
]
