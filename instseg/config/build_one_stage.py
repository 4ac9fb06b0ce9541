"""From the configuration's ``model`` section to a one-stage detector."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import assert_never

from torch import nn

from instseg.config.build_backbone import build_backbone, load_classifier
from instseg.config.schema_one_stage import (
    DetectNetConfig,
    OneStageConfig,
    OneStageModels,
    PrototypesConfig,
    RetinaNetConfig,
    SqueezeDetConfig,
    SsdConfig,
    YoloV1Config,
    YoloV2Config,
    YoloxConfig,
)
from instseg.models.detection.detectnet import detectnet_googlenet
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.detection.prototype_masks import PrototypeMasks
from instseg.models.detection.retinanet import RetinaNetHead, retinanet_anchors
from instseg.models.detection.squeezedet import KITTI_ANCHORS, squeezedet
from instseg.models.detection.ssd import (
    ssd300_vgg16,
    ssd512_vgg16,
    ssdlite320,
    ssdlite320_mobilenet_v3_large,
)
from instseg.models.detection.yolov1 import yolov1
from instseg.models.detection.yolov2 import COCO_ANCHORS, yolov2_darknet19
from instseg.models.detection.yolox import yolox
from instseg.models.heads.retinanet import RetinaNetConvs
from instseg.models.layers import Norm
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess


def build_one_stage(
    config: OneStageModels, *, num_classes: int, load_backbone: bool = True
) -> OneStageDetector:
    """See `instseg.config.build_model.build_model`."""
    model = _model(config, num_classes, load_backbone)
    for name in ("score_threshold", "nms_threshold", "max_detections"):
        if (value := getattr(config, name)) is not None:
            setattr(model.head, name, value)
    model.preprocess = _recoloured(model.preprocess, config)
    return model


def _model(config: OneStageModels, num_classes: int, load: bool) -> OneStageDetector:
    match config:
        case SsdConfig():
            return _ssd(config, num_classes, load)
        case RetinaNetConfig():
            return _retinanet(config, num_classes, load)
        case YoloxConfig():
            return yolox(
                config.variant,
                num_classes,
                input_size=config.input_size,
                masks=_prototypes(config.masks),
                use_l1=config.use_l1,
                multi_label=config.multi_label,
            )
        case YoloV1Config():
            return yolov1(num_classes, width=config.width, hidden=config.hidden)
        case YoloV2Config():
            return yolov2_darknet19(num_classes, config.anchors or COCO_ANCHORS, width=config.width)
        case SqueezeDetConfig():
            anchors = config.anchors or KITTI_ANCHORS
            model = squeezedet(num_classes, anchors, version=config.version)
            return _with_weights(model, config.weights, f"squeezenet{config.version}", load)
        case DetectNetConfig():
            return _with_weights(
                detectnet_googlenet(num_classes), config.weights, "googlenet", load
            )
        case _:
            assert_never(config)


def _ssd(config: SsdConfig, num_classes: int, load: bool) -> OneStageDetector:
    if config.backbone is not None:
        return ssdlite320(build_backbone(config.backbone, load, 3), num_classes)
    frozen = config.freeze_at
    if config.variant == "ssdlite320_mobilenet_v3_large":
        # ImageNet's weights are of the full tail; torchvision reduces it only without them.
        model = ssdlite320_mobilenet_v3_large(
            num_classes, reduced_tail=config.weights is None, freeze_at=frozen
        )
        return _with_weights(model, config.weights, "mobilenet_v3_large", load)
    builder = ssd300_vgg16 if config.variant == "ssd300_vgg16" else ssd512_vgg16
    return _with_weights(builder(num_classes, freeze_at=frozen), config.weights, "vgg16", load)


def _with_weights(
    model: OneStageDetector, weights: Path | str | None, name: str, load: bool
) -> OneStageDetector:
    if load and weights is not None:
        load_classifier(model.backbone, weights, name, "model")
    return model


def _retinanet(config: RetinaNetConfig, num_classes: int, load: bool) -> OneStageDetector:
    backbone = build_backbone(config.backbone, load, 3)
    neck = FPN(
        backbone.channels,
        backbone.strides,
        config.channels,
        extra="conv_c5" if config.extra_from == "c5" else "conv_p5",
        min_stride=config.min_stride,
    )
    masks = _prototypes(config.masks)
    prototypes = None if masks is None else PrototypeMasks(neck.channels, **masks)
    norm: Norm | None = partial(nn.GroupNorm, neck.channels // 8) if config.norm else None
    anchors = retinanet_anchors(neck.strides, torchvision=config.torchvision_compatible)
    convs = RetinaNetConvs(
        neck.channels,
        anchors.num_anchors,
        num_classes,
        depth=config.depth,
        norm=norm,
        num_prototypes=prototypes.num_prototypes if prototypes else 0,
    )
    head = RetinaNetHead(anchors, convs, masks=prototypes, box_loss=config.box_loss)
    # The largest stride of the backbone: what the pyramid adds on top may be cut short.
    return OneStageDetector(Preprocess(size_divisor=max(backbone.strides)), backbone, neck, head)


def _prototypes(config: PrototypesConfig | None) -> dict[str, int] | None:
    """The options of `PrototypeMasks`."""
    if config is None:
        return None
    options = {"num_prototypes": config.number, "mask_size": config.mask_size}
    return options if config.channels is None else {**options, "channels": config.channels}


def _recoloured(own: Preprocess, config: OneStageConfig) -> Preprocess:
    """With the configuration's mean and deviation in the place of the family's, if it has them."""
    if config.image_mean is None or config.image_std is None:
        return own
    return Preprocess(
        config.image_mean,
        config.image_std,
        own.size_divisor,
        min_size=own.min_size,
        fill=own.fill,
    )
