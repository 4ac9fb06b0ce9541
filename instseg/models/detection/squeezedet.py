"""SqueezeDet (Wu et al., 2017, arXiv:1612.01051)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from instseg.losses.squeezedet import AnchorTargets, squeezedet_losses
from instseg.models.backbones.squeezenet import SqueezeNet
from instseg.models.box_coder import BoxCoder
from instseg.models.detection.grid import (
    GridHead,
    Objects,
    anchor_shapes,
    cell_corners,
    gather_objects,
    grid_size,
    in_crowd,
    last_of_each,
)
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.heads.squeezedet import ConvDet
from instseg.models.preprocess import Preprocess
from instseg.ops import box_iou, box_iou_elementwise
from instseg.structures import ImageBatch, Instances
from instseg.structures.geometry import Size

_STRIDE = 16
KITTI_ANCHORS = (
    (36.0, 37.0),
    (366.0, 174.0),
    (115.0, 59.0),
    (162.0, 87.0),
    (38.0, 90.0),
    (258.0, 173.0),
    (224.0, 108.0),
    (78.0, 170.0),
    (72.0, 43.0),
)
"""Width and height in pixels of the published anchors, for images of 1248 x 384."""


class SqueezeDetHead(GridHead):
    """K anchors around the centre of every cell, each with offsets, a confidence and classes.

    An object belongs to the anchor that overlaps it most, and only to that (section 3.3); where two
    want one anchor, it goes to the one that it overlaps more, and the other trains nothing. Every
    other anchor should have confidence 0, unless half of it is in a crowd region.

    Args:
        predictor: the convolution.
        anchors: width and height in pixels of each anchor.
        stride: pixels a cell.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_candidates: so many of the best of each image go into suppression; the paper keeps 64.
        max_detections: at most this many an image.

    Raises:
        ValueError: the anchors are not as many as the predictor's, or a side is not positive.
    """

    class_layers = ("predictor.output.*",)
    anchors: Tensor

    def __init__(
        self,
        predictor: ConvDet,
        anchors: Sequence[Sequence[float]] = KITTI_ANCHORS,
        *,
        stride: int = _STRIDE,
        score_threshold: float = 0.005,
        nms_threshold: float = 0.4,
        max_candidates: int = 1000,
        max_detections: int = 100,
    ) -> None:
        super().__init__(
            predictor,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_candidates=max_candidates,
            max_detections=max_detections,
        )
        self.register_buffer(
            "anchors", anchor_shapes(anchors, predictor.num_anchors), persistent=False
        )
        # Equations 1 and 2: x = x_a + w_a dx, w = w_a exp(dw).
        self.box_coder = BoxCoder()
        self.stride = stride

    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_box_reg``, ``loss_objectness``, ``loss_classifier``; see `squeezedet_losses`."""
        raw = self.predictor(features[-1]).float()
        assigned = self.assign(raw, grid_size(features), targets)
        box, objectness, classes = squeezedet_losses(raw.flatten(0, 1), assigned)
        return {"loss_box_reg": box, "loss_objectness": objectness, "loss_classifier": classes}

    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image.

        The score is max over the classes of Pr(class | object) * Pr(object) * IOU (section 3.1), so
        that an anchor is found as one class at most.
        """
        raw = self.predictor(features[-1]).float()
        scores = raw[..., 4:5].sigmoid() * raw[..., 5:].softmax(dim=-1)
        best, label = scores.max(dim=-1, keepdim=True)
        return self.select(
            self.box_coder.decode(raw[..., :4], self.make_anchors(grid_size(features))),
            torch.zeros_like(scores).scatter(-1, label, best),
            batch.sizes,
        )

    def make_anchors(self, grid: Size) -> Tensor:
        """Anchors ``[H * W * K, 4]`` of a grid (H, W), row by row, shapes innermost."""
        center = (cell_corners(grid, self.anchors.device) + 0.5) * self.stride
        half = 0.5 * self.anchors
        low, high = center[:, None] - half, center[:, None] + half
        return torch.cat([low, high], dim=2).flatten(0, 1)

    @torch.no_grad()
    def assign(self, raw: Tensor, grid: Size, targets: Sequence[Instances]) -> AnchorTargets:
        """What the predictions ``[B, H * W * K, 5 + C]`` should be."""
        anchors = self.make_anchors(grid)
        objects = gather_objects(targets, raw.device)
        overlap, index = _best_anchor(objects, anchors, len(raw))
        # The last of those that want an anchor gets it: the one with the highest overlap.
        order = overlap.argsort(stable=True)
        order = order[overlap[order] > 0]
        slots = objects.image * len(anchors) + index
        owners = order[last_of_each(slots[order], len(raw) * len(anchors))]
        slot, index, objects = slots[owners], index[owners], objects[owners]
        negative = ~in_crowd(anchors.expand(len(raw), -1, -1), targets).flatten()
        negative[slot] = False
        predicted = self.box_coder.decode(raw.flatten(0, 1)[slot, :4], anchors[index])
        return AnchorTargets(
            positive=slot,
            offsets=self.box_coder.encode(objects.boxes, anchors[index]),
            iou=box_iou_elementwise(predicted, objects.boxes),
            labels=objects.labels,
            negative=negative,
        )


def _best_anchor(objects: Objects, anchors: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Of each object: the highest IoU ``[M]`` with an anchor, and which that is, ``int64 [M]``."""
    best = [
        box_iou(objects.boxes[objects.image == image], anchors).max(dim=1)
        for image in range(num_images)
    ]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def squeezedet(
    num_classes: int,
    anchors: Sequence[Sequence[float]] = KITTI_ANCHORS,
    *,
    version: Literal["1_0", "1_1"] = "1_1",
) -> OneStageDetector:
    """SqueezeDet with SqueezeNet.

    Args:
        num_classes: C.
        anchors: width and height in pixels, for instance clusters of the training set's boxes.
        version: of SqueezeNet.
    """
    backbone = SqueezeNet(version)
    predictor = ConvDet(backbone.channels[-1], num_classes, len(anchors))
    head = SqueezeDetHead(predictor, anchors)
    return OneStageDetector(Preprocess(size_divisor=_STRIDE), backbone, nn.Identity(), head)
