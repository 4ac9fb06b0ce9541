"""DetectNet: coverage and boxes on a grid.

Source: NVIDIA, "DetectNet: Deep Neural Network for Object Detection in DIGITS", Parallel Forall,
2016, and the network published with NVIDIA's Caffe, ``examples/kitti/detectnet_network.prototxt``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instseg.losses.detectnet import CoverageTargets, detectnet_losses
from instseg.models.backbones.googlenet import GoogLeNet
from instseg.models.detection.grid import (
    GridHead,
    cell_corners,
    gather_objects,
    grid_size,
    in_crowd,
)
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.heads.detectnet import CoverageHead
from instseg.models.preprocess import Preprocess
from instseg.structures import ImageBatch, Instances
from instseg.structures.geometry import Size

_STRIDE = 16


class DetectNetHead(GridHead):
    """Every cell says how far it is covered by an object of each class, and that object's box.

    The coverage region of an object is its box, shrunk around its centre by ``shrink`` but not
    below ``min_side`` pixels (nor beyond the box). A cell that it touches has coverage 1 for the
    object's class; where regions meet, the object later in the list has the cell. Cells outside all
    regions have coverage 0, unless half of their area is in a crowd region.

    Two things differ from the published network. Corners are predicted in cells, not in pixels,
    so that the last layer starts near its targets. And where that clusters the boxes of cells above
    a threshold (OpenCV's ``groupRectangles``), here the coverage is the score of the cell's box,
    and non-maximum suppression drops the duplicates: an object that few cells cover can be found.

    Args:
        predictor: the two output layers.
        stride: pixels a cell.
        shrink: share of the box's sides that the coverage region has (``scale_cvg``).
        min_side: its least side in pixels (``min_cvg_len``).
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_candidates: so many of the best of each image go into suppression.
        max_detections: at most this many an image.
    """

    class_layers = ("predictor.coverage.*",)

    def __init__(
        self,
        predictor: CoverageHead,
        *,
        stride: int = _STRIDE,
        shrink: float = 0.4,
        min_side: float = 20.0,
        score_threshold: float = 0.05,
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
        self.stride = stride
        self.shrink = shrink
        self.min_side = min_side

    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_coverage`` and ``loss_box_reg``; see `detectnet_losses`."""
        coverage, corners = self.predictor(features[-1])
        assigned = self.assign(grid_size(features), targets, coverage.device)
        covered, box = detectnet_losses(
            coverage.flatten(0, 1), corners.flatten(0, 1), assigned, num_images=len(targets)
        )
        return {"loss_coverage": covered, "loss_box_reg": box}

    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image; the score is the coverage."""
        coverage, corners = self.predictor(features[-1])
        return self.select(
            self.decode(corners.float(), grid_size(features)),
            coverage.float().sigmoid(),
            batch.sizes,
        )

    def decode(self, corners: Tensor, grid: Size) -> Tensor:
        """Boxes ``[B, H * W, 4]`` in pixels from the predicted corners of the same shape."""
        return (corners + cell_corners(grid, corners.device).repeat(1, 2)) * self.stride

    @torch.no_grad()
    def assign(
        self, grid: Size, targets: Sequence[Instances], device: torch.device
    ) -> CoverageTargets:
        """What the cells of the images should say."""
        objects = gather_objects(targets, device)
        corners = cell_corners(grid, device)
        cells = torch.cat([corners, corners + 1], dim=1) * self.stride
        sides = objects.sides
        region = torch.minimum(sides, (self.shrink * sides).clamp(min=self.min_side))
        low, high = objects.centers - region / 2, objects.centers + region / 2
        owners = torch.cat(
            [_owners(cells, low, high, objects.image == image) for image in range(len(targets))]
        )
        cell = (owners >= 0).nonzero()[:, 0]
        owner = owners[cell]
        offset = corners[cell % len(corners)].repeat(1, 2)
        # An object whose region is less than one cell counts as much as one of one cell.
        weights = (self.stride**2 / region.prod(dim=1)).clamp(max=1)
        ignored = in_crowd(cells.expand(len(targets), -1, -1), targets).flatten()
        return CoverageTargets(
            cell=cell,
            labels=objects.labels[owner],
            corners=objects.boxes[owner] / self.stride - offset,
            sides=sides[owner].clamp(min=1) / self.stride,
            weights=weights[owner],
            ignored=ignored & (owners < 0),
        )


def _owners(cells: Tensor, low: Tensor, high: Tensor, own: Tensor) -> Tensor:
    """The last of an image's objects whose region overlaps a cell ``[N, 4]``, or -1: ``[N]``.

    Args:
        cells: of the image.
        low: top left corner of the regions of all objects of the batch, ``[M, 2]``.
        high: bottom right corner, likewise.
        own: ``bool [M]``, the objects of the image.
    """
    index = own.nonzero()[:, 0]
    if len(index) == 0:
        return torch.full((len(cells),), -1, device=cells.device)
    touched = (cells[:, None, :2] < high[index]) & (cells[:, None, 2:] > low[index])
    return index.where(touched.all(dim=2), -1).amax(dim=1)


def detectnet_googlenet(num_classes: int) -> OneStageDetector:
    """DetectNet with GoogLeNet.

    Args:
        num_classes: C.
    """
    backbone = GoogLeNet()
    head = DetectNetHead(CoverageHead(backbone.channels[-1], num_classes))
    # The scale of GoogLeNet's weights; 32 pixels at least, since batch norm in training needs more
    # than one cell.
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, _STRIDE, min_size=(32, 32))
    return OneStageDetector(preprocess, backbone, nn.Identity(), head)
