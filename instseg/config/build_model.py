"""From the configuration's ``model`` section to a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from instseg.config.build_backbone import build_backbone
from instseg.config.build_one_stage import build_one_stage
from instseg.config.build_semantic import build_semantic
from instseg.config.loader import ConfigError
from instseg.config.schema_model import (
    BoxBodyConfig,
    FcBodyConfig,
    MaskHeadConfig,
    MaskRcnnConfig,
    ModelConfig,
    RcnnConfig,
    UNetMaskHeadConfig,
)
from instseg.config.schema_semantic import Pix2PixConfig, SemanticConfig
from instseg.models.anchors import AnchorGenerator
from instseg.models.detection import FasterRCNN, MaskRCNN
from instseg.models.detection.detector import Detector
from instseg.models.detection.roi_boxes import RoIBoxHead
from instseg.models.detection.roi_masks import RoIMaskHead, unet_mask_head
from instseg.models.detection.rpn import ProposalLimits, RegionProposalNetwork
from instseg.models.heads import (
    BoxPredictor,
    ConvFCBoxBody,
    FCBoxBody,
    FCNMaskBody,
    MaskPredictor,
    RPNHead,
)
from instseg.models.layers import Norm, group_norm
from instseg.models.matcher import Matcher, Sampler
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess
from instseg.models.semantic.pix2pix import Pix2Pix, pix2pix
from instseg.models.semantic.segmenter import SemanticSegmenter
from instseg.ops import MultiscaleRoIAlign

Model = Detector | SemanticSegmenter | Pix2Pix


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    load_backbone: bool = True,
) -> Model:
    """The model of a configuration.

    Args:
        config: the ``model`` section.
        num_classes: C, without a background.
        class_names: of these classes, in label order; for a configuration that names classes.
        load_backbone: give the backbone its weights; not needed where a state dict of the whole
            model follows.

    Raises:
        ConfigError: parts that do not fit together, or weights that do not fit the backbone.
    """
    if isinstance(config, Pix2PixConfig):
        return pix2pix(
            depth=config.depth,
            width=config.width,
            discriminator_width=config.width,
            l1_weight=config.l1_weight,
        )
    if isinstance(config, SemanticConfig):
        return build_semantic(
            config, num_classes=num_classes, class_names=class_names, load_backbone=load_backbone
        )
    if not isinstance(config, RcnnConfig):
        return build_one_stage(config, num_classes=num_classes, load_backbone=load_backbone)
    backbone = build_backbone(config.backbone, load_backbone, len(config.image_mean))
    if len(config.image_mean) != len(config.image_std):
        raise ConfigError(
            f"model.image_mean has {len(config.image_mean)} values, "
            f"model.image_std {len(config.image_std)}: both need one for each channel"
        )
    preprocess = Preprocess(config.image_mean, config.image_std, max(backbone.strides))
    neck = FPN(
        backbone.channels, backbone.strides, config.neck.channels, norm=_norm(config.neck.norm)
    )
    parts = (preprocess, backbone, neck, _rpn(config, neck), _box_head(config, neck, num_classes))
    if isinstance(config, MaskRcnnConfig):
        aligned = not config.torchvision_compatible
        return MaskRCNN(*parts, _mask_head(config.mask_head, neck, num_classes, aligned))
    return FasterRCNN(*parts)


def _rpn(config: RcnnConfig, neck: FPN) -> RegionProposalNetwork:
    rpn = config.rpn
    if len(config.anchors.sizes) != len(neck.strides):
        raise ConfigError(
            f"model.anchors.sizes has {len(config.anchors.sizes)} levels, but the neck gives "
            f"{len(neck.strides)} (strides {', '.join(map(str, neck.strides))})"
        )
    anchors = AnchorGenerator(
        config.anchors.sizes,
        config.anchors.aspect_ratios,
        neck.strides,
        torchvision=config.torchvision_compatible,
    )
    return RegionProposalNetwork(
        anchors,
        RPNHead(neck.channels, anchors.num_anchors, depth=rpn.depth),
        matcher=Matcher(rpn.positive_iou, rpn.negative_iou, allow_low_quality=True),
        sampler=Sampler(rpn.samples, rpn.positive_fraction),
        training_limits=ProposalLimits(rpn.train_before_nms, rpn.train_after_nms),
        inference_limits=ProposalLimits(rpn.test_before_nms, rpn.test_after_nms),
        nms_threshold=rpn.nms_threshold,
    )


def _box_head(config: RcnnConfig, neck: FPN, num_classes: int) -> RoIBoxHead:
    head = config.box_head
    pooler = _pooler(neck, head.pooled_size, not config.torchvision_compatible)
    body = _box_body(head.body, neck.channels, head.pooled_size)
    return RoIBoxHead(
        pooler,
        body,
        BoxPredictor(body.channels, num_classes),
        matcher=Matcher(head.positive_iou, head.positive_iou),
        sampler=Sampler(head.samples, head.positive_fraction),
        score_threshold=head.score_threshold,
        nms_threshold=head.nms_threshold,
        max_detections=head.max_detections,
    )


def _box_body(config: BoxBodyConfig, channels: int, size: int) -> FCBoxBody | ConvFCBoxBody:
    if isinstance(config, FcBodyConfig):
        return FCBoxBody(channels, size, config.channels)
    return ConvFCBoxBody(
        channels, size, config.conv_channels, config.channels, norm=_norm(config.norm)
    )


def _mask_head(config: MaskHeadConfig, neck: FPN, num_classes: int, aligned: bool) -> RoIMaskHead:
    if isinstance(config, UNetMaskHeadConfig):
        return unet_mask_head(
            neck.channels,
            neck.strides[:-1],
            num_classes,
            depth=config.depth,
            resolution=config.resolution,
            channels=config.channels,
            class_agnostic=config.class_agnostic,
            norm=_norm(config.norm),
            aligned=aligned,
            bce=config.losses.bce,
            dice=config.losses.dice,
        )
    body = FCNMaskBody(neck.channels, config.channels, norm=_norm(config.norm))
    return RoIMaskHead(
        _pooler(neck, config.pooled_size, aligned),
        body,
        MaskPredictor(body.channels, num_classes, body.channels),
        bce=config.losses.bce,
        dice=config.losses.dice,
    )


def _pooler(neck: FPN, size: int, aligned: bool) -> MultiscaleRoIAlign:
    # The pooled last level serves the region proposals alone (FPN, section 4.1).
    return MultiscaleRoIAlign(neck.strides[:-1], size, aligned=aligned)


def _norm(name: str | None) -> Norm | None:
    return {"batch": nn.BatchNorm2d, "group": group_norm, None: None}[name]
