"""YOLOv2 (Redmon & Farhadi, YOLO9000, 2017, arXiv:1612.08242)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from instseg.losses.yolov2 import RegionTargets, region_losses
from instseg.models.backbones.darknet import Darknet19
from instseg.models.detection.grid import (
    MAX_LOG_SCALE,
    GridHead,
    Objects,
    anchor_shapes,
    cell_corners,
    cells_of,
    gather_objects,
    grid_size,
    in_crowd,
    last_of_each,
)
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.heads.yolov2 import YOLOv2Predictor
from instseg.models.necks.passthrough import Passthrough
from instseg.models.preprocess import Preprocess
from instseg.ops import box_iou, box_iou_elementwise
from instseg.structures import ImageBatch, Instances
from instseg.structures.geometry import Size

_STRIDE = 32
# The clusters of COCO's boxes in ``yolov2.cfg``, in cells of 32 pixels.
_COCO_CLUSTERS = (
    (0.57273, 0.677385),
    (1.87446, 2.06253),
    (3.33843, 5.47434),
    (7.88282, 3.52778),
    (9.77052, 9.16828),
)
COCO_ANCHORS = tuple((w * _STRIDE, h * _STRIDE) for w, h in _COCO_CLUSTERS)
"""Width and height in pixels."""


class YOLOv2Head(GridHead):
    """Boxes from anchors, an objectness and a softmax over the classes for each of them.

    An object belongs to the cell that holds its centre, and there to the anchor whose shape is
    nearest (IoU of the shapes, as if both were centred on one point). Where two objects want one
    anchor of one cell, the later in the list gets it, as in Darknet. Every other prediction should
    have confidence 0, unless its box already overlaps an object with an IoU above ``ignore_iou``,
    or half of it is in a crowd region. Darknet also draws all boxes to their anchors for the first
    12800 images; here the last layer starts there.

    Args:
        predictor: the convolutions.
        anchors: width and height in pixels of each anchor.
        stride: pixels a cell.
        ignore_iou: above this a prediction without an object is not a negative.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_candidates: so many of the best of each image go into suppression.
        max_detections: at most this many an image.

    Raises:
        ValueError: the anchors are not as many as the predictor's, or a side is not positive.
    """

    class_layers = ("predictor.output.*",)
    anchors: Tensor

    def __init__(
        self,
        predictor: YOLOv2Predictor,
        anchors: Sequence[Sequence[float]] = COCO_ANCHORS,
        *,
        stride: int = _STRIDE,
        ignore_iou: float = 0.6,
        score_threshold: float = 0.005,
        nms_threshold: float = 0.45,
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
        self.stride = stride
        self.ignore_iou = ignore_iou

    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_box_reg``, ``loss_objectness`` and ``loss_classifier``; see `region_losses`."""
        raw = self.predictor(features[-1]).float()
        assigned = self.assign(raw, grid_size(features), targets)
        box, objectness, classes = region_losses(
            raw.flatten(0, 1), assigned, num_images=len(targets)
        )
        return {"loss_box_reg": box, "loss_objectness": objectness, "loss_classifier": classes}

    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image; the score is Pr(object) * IOU * Pr(class | object)."""
        raw = self.predictor(features[-1]).float()
        return self.select(
            self.decode(raw, grid_size(features)),
            raw[..., 4:5].sigmoid() * raw[..., 5:].softmax(dim=-1),
            batch.sizes,
        )

    def decode(self, raw: Tensor, grid: Size) -> Tensor:
        """Boxes ``[B, H * W * A, 4]`` in pixels from ``[B, H * W * A, 5 + C]``.

        Section 2, "Direct location prediction": b_x = sigma(t_x) + c_x, b_w = p_w exp(t_w).
        """
        corners = cell_corners(grid, raw.device).repeat_interleave(len(self.anchors), dim=0)
        priors = self.anchors.repeat(grid[0] * grid[1], 1)
        center = (raw[..., :2].sigmoid() + corners) * self.stride
        half = 0.5 * priors * raw[..., 2:4].clamp(max=MAX_LOG_SCALE).exp()
        return torch.cat([center - half, center + half], dim=-1)

    @torch.no_grad()
    def assign(self, raw: Tensor, grid: Size, targets: Sequence[Instances]) -> RegionTargets:
        """What the predictions ``[B, H * W * A, 5 + C]`` should be."""
        boxes = self.decode(raw, grid)
        objects = gather_objects(targets, raw.device)
        negative = ~(in_crowd(boxes, targets) | self._overlapping(boxes, objects))
        step = self.anchors.new_full((2,), self.stride)
        cell, offset = cells_of(objects, grid, step)
        anchor = _shape_iou(objects.sides, self.anchors).argmax(dim=1)
        slot = cell * len(self.anchors) + anchor
        owners = last_of_each(slot, negative.numel())
        slot, anchor, objects = slot[owners], anchor[owners], objects[owners]
        negative.view(-1)[slot] = False
        area = grid[0] * grid[1] * self.stride**2
        return RegionTargets(
            positive=slot,
            boxes=torch.cat([offset[owners], (objects.sides / self.anchors[anchor]).log()], dim=1),
            box_weights=2 - objects.sides.prod(dim=1) / area,
            iou=box_iou_elementwise(boxes.flatten(0, 1)[slot], objects.boxes),
            labels=objects.labels,
            negative=negative.flatten(),
        )

    def _overlapping(self, boxes: Tensor, objects: Objects) -> Tensor:
        """``bool [B, N]``: a predicted box overlaps an object of its image above ``ignore_iou``."""
        found = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        for image in range(len(boxes)):
            own = objects.boxes[objects.image == image]
            found[image] = (box_iou(boxes[image], own) > self.ignore_iou).any(dim=1)
        return found


def _shape_iou(sides: Tensor, anchors: Tensor) -> Tensor:
    """IoU ``[M, A]`` of boxes of sides ``[M, 2]`` and ``[A, 2]`` that share their centres."""
    common = torch.minimum(sides[:, None], anchors).prod(dim=2)
    return common / (sides.prod(dim=1)[:, None] + anchors.prod(dim=1) - common)


def yolov2_darknet19(
    num_classes: int,
    anchors: Sequence[Sequence[float]] = COCO_ANCHORS,
    *,
    width: float = 1.0,
) -> OneStageDetector:
    """YOLOv2 with Darknet-19 and the passthrough layer.

    Args:
        num_classes: C.
        anchors: width and height in pixels, for instance clusters of the training set's boxes.
        width: factor of every number of channels; 1 is the published network.
    """
    backbone = Darknet19(width=width)
    channels = max(1, round(1024 * width))
    neck = Passthrough(backbone.channels, channels, max(1, round(64 * width)))
    predictor = YOLOv2Predictor(neck.channels, num_classes, len(anchors), channels=channels)
    # Images on 0..1 and grey borders, as in Darknet; at least 64 pixels, since batch norm in
    # training needs more than one cell.
    preprocess = Preprocess(
        (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), _STRIDE, min_size=(64, 64), fill=(0.5, 0.5, 0.5)
    )
    return OneStageDetector(preprocess, backbone, neck, YOLOv2Head(predictor, anchors))
