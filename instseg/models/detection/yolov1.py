"""YOLOv1 (Redmon et al., You Only Look Once, 2016, arXiv:1506.02640)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instseg.losses.yolov1 import CellTargets, yolov1_losses
from instseg.models.backbones.darknet import YOLOv1Backbone
from instseg.models.detection.grid import (
    GridHead,
    Objects,
    cell_corners,
    cells_of,
    gather_objects,
    in_crowd,
    last_of_each,
)
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.heads.yolov1 import YOLOv1Predictor
from instseg.models.preprocess import Preprocess
from instseg.ops import box_iou_elementwise
from instseg.structures import ImageBatch, Instances
from instseg.structures.geometry import Size


class YOLOv1Head(GridHead):
    """K boxes with a confidence, and one set of class probabilities, for each of S x S cells.

    The grid spans the padded batch, whatever its size, and what the paper has relative to the image
    is relative to that. The cell that holds an object's centre finds it; where a cell holds
    several, the last in the list. Of its K boxes the one with the highest IoU is responsible, or,
    where none overlaps the object, the one nearest by root mean square (as in Darknet). Cells with
    half of their area in a crowd region may say what they like.

    Args:
        predictor: the fully connected layers.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_candidates: so many of the best of each image go into suppression.
        max_detections: at most this many an image.
    """

    class_layers = ("predictor.output.*",)
    predictor: YOLOv1Predictor

    def __init__(
        self,
        predictor: YOLOv1Predictor,
        *,
        score_threshold: float = 0.005,
        nms_threshold: float = 0.5,
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

    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_box_reg``, ``loss_objectness`` and ``loss_classifier``; see `yolov1_losses`."""
        boxes, confidence, classes = self.predictor(features[-1])
        assigned = self.assign(boxes.float(), _size(batch), targets)
        box, objectness, classification = yolov1_losses(
            boxes.flatten(0, 1),
            confidence.flatten(0, 1),
            classes.flatten(0, 1),
            assigned,
            num_images=len(targets),
        )
        return {
            "loss_box_reg": box,
            "loss_objectness": objectness,
            "loss_classifier": classification,
        }

    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image.

        Equation 1: Pr(class | object) * Pr(object) * IOU, each brought into [0, 1].
        """
        boxes, confidence, classes = self.predictor(features[-1])
        probabilities = classes.float().clamp(0, 1)[:, :, None]
        scores = confidence.float().clamp(0, 1)[..., None] * probabilities
        return self.select(
            self.decode(boxes.float(), _size(batch)).flatten(1, 2),
            scores.flatten(1, 2),
            batch.sizes,
        )

    def decode(self, raw: Tensor, size: Size) -> Tensor:
        """Boxes ``[B, S * S, K, 4]`` in pixels from the predicted ones of the same shape.

        Args:
            raw: x and y of the centre in the cell, square roots of w and h in the image.
            size: (height, width) of the padded batch.
        """
        image = raw.new_tensor([size[1], size[0]])
        corners = cell_corners((self.predictor.grid, self.predictor.grid), raw.device)[:, None]
        center = (raw[..., :2] + corners) * (image / self.predictor.grid)
        half = 0.5 * raw[..., 2:].square() * image
        return torch.cat([center - half, center + half], dim=-1)

    @torch.no_grad()
    def assign(self, raw: Tensor, size: Size, targets: Sequence[Instances]) -> CellTargets:
        """What the cells should say, given the boxes ``[B, S * S, K, 4]`` that they predict."""
        grid = (self.predictor.grid, self.predictor.grid)
        image = raw.new_tensor([size[1], size[0]])
        step = image / self.predictor.grid
        corners = cell_corners(grid, raw.device)
        cells = torch.cat([corners, corners + 1], dim=1) * step.repeat(2)
        objects = gather_objects(targets, raw.device)
        cell, offset = cells_of(objects, grid, step)
        owners = last_of_each(cell, len(raw) * len(cells))
        cell, objects = cell[owners], objects[owners]
        predicted = self.decode(raw, size).flatten(0, 1)[cell]
        responsible, iou = _responsible(predicted, objects, image)
        return CellTargets(
            cell=cell,
            responsible=responsible,
            boxes=torch.cat([offset[owners], (objects.sides / image).sqrt()], dim=1),
            iou=iou,
            labels=objects.labels,
            ignored=in_crowd(cells.expand(len(raw), -1, -1), targets).flatten(),
        )


def _responsible(boxes: Tensor, objects: Objects, image: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the boxes ``[P, K, 4]`` is responsible for its object ``[P]``, and its IoU."""
    num_boxes = boxes.shape[1]
    repeated = objects.boxes.repeat_interleave(num_boxes, dim=0)
    iou = box_iou_elementwise(boxes.flatten(0, 1), repeated).view(-1, num_boxes)
    center = 0.5 * (boxes[..., :2] + boxes[..., 2:]) - objects.centers[:, None]
    sides = boxes[..., 2:] - boxes[..., :2] - objects.sides[:, None]
    distance = torch.cat([center / image, sides / image], dim=2).square().sum(dim=2)
    overlapping = (iou > 0).any(dim=1, keepdim=True)
    chosen = torch.where(overlapping, iou, -distance).argmax(dim=1)
    return chosen, iou.gather(1, chosen[:, None])[:, 0]


def _size(batch: ImageBatch) -> Size:
    return batch.tensor.shape[-2], batch.tensor.shape[-1]


def yolov1(num_classes: int, *, width: float = 1.0, hidden: int = 4096) -> OneStageDetector:
    """YOLOv1 with 7 x 7 cells and 2 boxes each.

    Batches are padded to 448 x 448 at least, the paper's size.

    Args:
        num_classes: C.
        width: factor of every number of channels; 1 is the published network.
        hidden: width of the first fully connected layer; 4096 is the published one.
    """
    backbone = YOLOv1Backbone(width=width)
    predictor = YOLOv1Predictor(backbone.channels[-1], num_classes, hidden=hidden)
    preprocess = Preprocess(
        (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 64, min_size=(448, 448), fill=(0.5, 0.5, 0.5)
    )
    return OneStageDetector(preprocess, backbone, nn.Identity(), YOLOv1Head(predictor))
