"""Detectors: compositions of parts, and their named builders."""

from instseg.models.detection.builders import (
    faster_rcnn_resnet50_fpn,
    faster_rcnn_resnet50_fpn_v2,
    mask_rcnn_resnet50_fpn,
    mask_rcnn_resnet50_fpn_v2,
)
from instseg.models.detection.faster_rcnn import FasterRCNN
from instseg.models.detection.mask_rcnn import MaskRCNN

__all__ = [
    "FasterRCNN",
    "MaskRCNN",
    "faster_rcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn_v2",
    "mask_rcnn_resnet50_fpn",
    "mask_rcnn_resnet50_fpn_v2",
]
