"""Detectors: compositions of parts, and their named builders."""

from instseg.models.detection.builders import (
    faster_rcnn_resnet50_fpn,
    faster_rcnn_resnet50_fpn_v2,
    mask_rcnn_resnet50_fpn,
    mask_rcnn_resnet50_fpn_v2,
)
from instseg.models.detection.detectnet import detectnet_googlenet
from instseg.models.detection.faster_rcnn import FasterRCNN
from instseg.models.detection.mask_rcnn import MaskRCNN
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.detection.retinanet import (
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_seg,
    retinanet_resnet50_fpn_v2,
)
from instseg.models.detection.squeezedet import squeezedet
from instseg.models.detection.ssd import ssd300_vgg16, ssd512_vgg16, ssdlite320_mobilenet_v3_large
from instseg.models.detection.yolov1 import yolov1
from instseg.models.detection.yolov2 import yolov2_darknet19
from instseg.models.detection.yolox import (
    yolox_l,
    yolox_l_seg,
    yolox_m,
    yolox_m_seg,
    yolox_nano,
    yolox_nano_seg,
    yolox_s,
    yolox_s_seg,
    yolox_tiny,
    yolox_tiny_seg,
    yolox_x,
    yolox_x_seg,
)

__all__ = [
    "FasterRCNN",
    "MaskRCNN",
    "OneStageDetector",
    "detectnet_googlenet",
    "faster_rcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn_v2",
    "mask_rcnn_resnet50_fpn",
    "mask_rcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_seg",
    "retinanet_resnet50_fpn_v2",
    "squeezedet",
    "ssd300_vgg16",
    "ssd512_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "yolov1",
    "yolov2_darknet19",
    "yolox_l",
    "yolox_l_seg",
    "yolox_m",
    "yolox_m_seg",
    "yolox_nano",
    "yolox_nano_seg",
    "yolox_s",
    "yolox_s_seg",
    "yolox_tiny",
    "yolox_tiny_seg",
    "yolox_x",
    "yolox_x_seg",
]
