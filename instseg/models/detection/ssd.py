"""SSD: single-shot multibox detector (Liu et al., 2016), and SSDlite (Sandler et al., 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from instseg.losses.ssd import multibox_losses
from instseg.models.backbones.base import Backbone
from instseg.models.backbones.mobilenet import MobileNetV3Large
from instseg.models.backbones.vgg import SSDVGG
from instseg.models.box_coder import BoxCoder
from instseg.models.default_boxes import (
    DefaultBoxes,
    DefaultBoxMatcher,
    ssd300_default_boxes,
    ssd512_default_boxes,
    ssdlite320_default_boxes,
)
from instseg.models.detection.one_stage import Candidates, DenseHead, OneStageDetector, keep_best
from instseg.models.heads.ssd import SSDPredictor
from instseg.models.matcher import IGNORED, POSITIVE
from instseg.models.necks.ssd import SSDExtraLayers, SSDLiteExtraLayers
from instseg.models.preprocess import Preprocess
from instseg.structures import ImageBatch, Instances

# The mean of the Caffe VGG, which sees 0..255 less the mean, and not divided.
VGG_MEAN = (0.48235, 0.45882, 0.40784)
VGG_STD = (1 / 255, 1 / 255, 1 / 255)


class SSDHead(DenseHead):
    """Default boxes, their classes and offsets, matching, loss and detections.

    Args:
        default_boxes: one set of shapes for each map.
        predictor: its numbers of boxes must be those of ``default_boxes``.
        matcher: assigns default boxes to objects.
        negative_ratio: negatives that count in the loss for each positive of an image.
        score_threshold: detections with a lower or equal score are dropped.
        nms_threshold: IoU above which the worse of two boxes of one class goes.
        max_detections: at most this many an image.
        max_candidates: of each class and image, at most this many go into the suppression.

    Raises:
        ValueError: predictor and default boxes do not fit each other.
    """

    def __init__(
        self,
        default_boxes: DefaultBoxes,
        predictor: SSDPredictor,
        *,
        matcher: DefaultBoxMatcher | None = None,
        negative_ratio: float = 3.0,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        max_detections: int = 200,
        max_candidates: int = 400,
    ) -> None:
        super().__init__(
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )
        if default_boxes.num_boxes != predictor.num_boxes:
            raise ValueError(
                f"the predictor has {predictor.num_boxes} boxes at a position of each map, but "
                f"default_boxes has {default_boxes.num_boxes}: build it with their num_boxes"
            )
        self.default_boxes = default_boxes
        self.predictor = predictor
        self.class_layers = [f"predictor.{pattern}" for pattern in predictor.class_layers]
        self.matcher = matcher or DefaultBoxMatcher()
        self.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.negative_ratio = negative_ratio
        self.max_candidates = max_candidates

    @property
    def network(self) -> nn.Module:
        """See `DenseHead.network`."""
        return self.predictor

    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_classifier`` and ``loss_box_reg``."""
        logits, offsets = self.predictor(features)
        boxes = self._boxes(batch, features)
        labels, encoded = zip(*(self._assign(boxes, t) for t in targets), strict=True)
        classification, regression = multibox_losses(
            logits,
            offsets,
            torch.stack(labels),
            torch.cat(encoded),
            negative_ratio=self.negative_ratio,
        )
        return {"loss_classifier": classification, "loss_box_reg": regression}

    def _assign(self, boxes: Tensor, target: Instances) -> tuple[Tensor, Tensor]:
        """Labels ``[A]`` and the positives' offsets as `multibox_losses` takes them."""
        kind, matched = self.matcher(boxes, target)
        positive = kind == POSITIVE
        objects = matched[positive]
        labels = torch.where(kind == IGNORED, -1, 0)
        labels[positive] = target.labels.to(boxes.device)[objects] + 1
        return labels, self.box_coder.encode(target.boxes.to(boxes)[objects], boxes[positive])

    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image, best first, clipped to it."""
        logits, offsets = self.predictor(features)
        boxes = self.box_coder.decode(offsets.float(), self._boxes(batch, features))
        scores = logits.float().softmax(dim=2)[..., 1:].transpose(1, 2)
        best, source = scores.topk(min(self.max_candidates, scores.shape[2]), dim=2)
        image, label, rank = (best > self.score_threshold).nonzero().unbind(1)
        source = source[image, label, rank]
        candidates = Candidates(
            image, boxes[image, source], best[image, label, rank], label, source
        )
        detections, _ = keep_best(
            candidates,
            batch.sizes,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )
        return detections

    def _boxes(self, batch: ImageBatch, features: Sequence[Tensor]) -> Tensor:
        height, width = batch.tensor.shape[-2:]
        return self.default_boxes([(f.shape[-2], f.shape[-1]) for f in features], (height, width))


def ssd300_vgg16(num_classes: int, *, freeze_at: int = 0) -> OneStageDetector:
    """SSD300 with VGG-16; images are padded to at least 300 x 300."""
    return _ssd_vgg16(num_classes, ssd300_default_boxes(), 300, freeze_at)


def ssd512_vgg16(num_classes: int, *, freeze_at: int = 0) -> OneStageDetector:
    """SSD512 with VGG-16; images are padded to at least 512 x 512."""
    return _ssd_vgg16(num_classes, ssd512_default_boxes(), 512, freeze_at)


def _ssd_vgg16(
    num_classes: int, boxes: DefaultBoxes, size: Literal[300, 512], freeze_at: int
) -> OneStageDetector:
    backbone = SSDVGG(freeze_at=freeze_at)
    neck = SSDExtraLayers(backbone.channels, size)
    head = SSDHead(boxes, SSDPredictor(neck.channels, boxes.num_boxes, num_classes))
    preprocess = Preprocess(VGG_MEAN, VGG_STD, size_divisor=1, min_size=(size, size))
    return OneStageDetector(preprocess, backbone, neck, head)


def ssdlite320_mobilenet_v3_large(
    num_classes: int, *, reduced_tail: bool = True, freeze_at: int = 0
) -> OneStageDetector:
    """SSDlite with MobileNetV3-Large; images are padded to at least 320 x 320."""
    backbone = MobileNetV3Large(reduced_tail=reduced_tail, freeze_at=freeze_at)
    return ssdlite320(backbone, num_classes)


def ssdlite320(backbone: Backbone, num_classes: int) -> OneStageDetector:
    """SSDlite on any backbone with two maps, of strides 16 and 32."""
    neck = SSDLiteExtraLayers(backbone.channels)
    boxes = ssdlite320_default_boxes()
    head = SSDHead(
        boxes,
        SSDPredictor(neck.channels, boxes.num_boxes, num_classes, depthwise=True),
        score_threshold=0.001,
        nms_threshold=0.55,
        max_detections=300,
        max_candidates=300,
    )
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, size_divisor=1, min_size=(320, 320))
    return OneStageDetector(preprocess, backbone, neck, head)
