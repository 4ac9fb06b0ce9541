"""SSD's default boxes and their matching to objects (Liu et al., 2016, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instseg.models.matcher import POSITIVE, Matcher, iou_by_parts
from instseg.structures import Instances
from instseg.structures.geometry import Size


class DefaultBoxes(nn.Module):
    """Boxes of several shapes at each position of each feature map.

    A map of scale s_k has squares of scales s_k and sqrt(s_k s_k+1), and for each aspect ratio a
    the boxes (s_k sqrt(a), s_k / sqrt(a)) and (s_k / sqrt(a), s_k sqrt(a)), in torchvision's order.
    Scales are shares of the nominal ``size``: a batch of another size has boxes of the same sizes
    in pixels, over more or fewer positions.

    Args:
        size: (height, width) in pixels of the images that the scales are for.
        scales: s_k of each map, and one more for the last map's sqrt(s_k s_k+1).
        aspect_ratios: those other than 1 and its own inverse, of each map.
        steps: distance in pixels between the positions of each map, which is the map's stride;
            None where the positions are to divide the batch evenly, as in the paper: for maps that
            lose their border on the way or are coarse beside the image.
        clip: no side is longer than that of the nominal size.

    Attributes:
        num_boxes: default boxes at each position of each map.

    Raises:
        ValueError: scales, aspect ratios and steps do not fit each other, or are not positive.
    """

    def __init__(
        self,
        size: Size,
        scales: Sequence[float],
        aspect_ratios: Sequence[Sequence[float]],
        steps: Sequence[float | None],
        *,
        clip: bool = True,
    ) -> None:
        super().__init__()
        maps = len(aspect_ratios)
        if len(scales) != maps + 1 or len(steps) != maps:
            raise ValueError(
                f"aspect_ratios for {maps} maps need {maps + 1} scales and {maps} steps, "
                f"got {len(scales)} and {len(steps)}"
            )
        ratios = [r for ratios in aspect_ratios for r in ratios]
        for name, values in (("scales", scales), ("aspect_ratios", ratios), ("steps", steps)):
            if wrong := [v for v in values if v is not None and v <= 0]:
                raise ValueError(f"{name} must be positive, got {wrong[0]}")
        self.size = size
        self.steps = list(steps)
        self.num_boxes = [2 + 2 * len(ratios) for ratios in aspect_ratios]
        for k in range(maps):
            shapes = torch.tensor(_shapes(scales[k], scales[k + 1], aspect_ratios[k]))
            self.register_buffer(
                f"shapes{k}", shapes.clamp(max=1) if clip else shapes, persistent=False
            )

    def forward(self, feature_sizes: Sequence[Size], image_size: Size) -> Tensor:
        """Default boxes ``[A, 4]``, x1 y1 x2 y2: map by map, row by row, box shapes innermost.

        Args:
            feature_sizes: (height, width) of each map.
            image_size: (height, width) of the padded batch.

        Raises:
            ValueError: another number of maps.
        """
        if len(feature_sizes) != len(self.steps):
            raise ValueError(
                f"default boxes are for {len(self.steps)} maps, got {len(feature_sizes)} maps"
            )
        boxes = []
        for k, (height, width) in enumerate(feature_sizes):
            shapes: Tensor = getattr(self, f"shapes{k}")
            y = self._centers(k, height, image_size[0], self.size[0], shapes)
            x = self._centers(k, width, image_size[1], self.size[1], shapes)
            y, x = torch.meshgrid(y, x, indexing="ij")
            centers = torch.stack((x, y), dim=-1).reshape(-1, 1, 2)
            corners = torch.cat((centers - 0.5 * shapes, centers + 0.5 * shapes), dim=2)
            boxes.append(corners.flatten(0, 1))
        height, width = self.size
        return torch.cat(boxes) * boxes[0].new_tensor([width, height, width, height])

    def _centers(self, k: int, count: int, side: int, nominal: int, like: Tensor) -> Tensor:
        """Centres ``[count]`` along one axis, as shares of the nominal side.

        Torchvision's arithmetic to the bit: an object inside of several large boxes has the same
        IoU with all of them but for rounding, which thus decides which one is its best.
        """
        step = self.steps[k]
        per_side = count * nominal / side if step is None else nominal / step
        return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / per_side


def _shapes(scale: float, following: float, ratios: Sequence[float]) -> list[tuple[float, float]]:
    """(width, height) of a map's default boxes, as shares of the image's sides."""
    between = math.sqrt(scale * following)
    shapes = [(scale, scale), (between, between)]
    for root in map(math.sqrt, ratios):
        shapes += [(scale * root, scale / root), (scale / root, scale * root)]
    return shapes


def ssd300_default_boxes() -> DefaultBoxes:
    """The 8732 boxes of SSD300 for COCO (section 3.4), as torchvision has them."""
    return DefaultBoxes(
        (300, 300),
        scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        aspect_ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        steps=(8, 16, 32, 64, None, None),
    )


def ssd512_default_boxes() -> DefaultBoxes:
    """The 24564 boxes of SSD512 for COCO (section 3.4), with the authors' release's scales."""
    return DefaultBoxes(
        (512, 512),
        scales=(0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06),
        aspect_ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        steps=(8, 16, 32, 64, 128, 256, None),
    )


def ssdlite320_default_boxes() -> DefaultBoxes:
    """The 3234 boxes of SSDlite320, as torchvision has them: scales 0.2 to 0.95 (equation 4)."""
    return DefaultBoxes(
        (320, 320),
        scales=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0),
        aspect_ratios=((2, 3),) * 6,
        steps=(16, 32, 64, None, None, None),
    )


@dataclass(frozen=True)
class DefaultBoxMatcher:
    """Match default boxes to objects (section 2.2, "Matching strategy").

    Each object takes the default box of highest IoU, however low, as long as they overlap (of two
    objects with the same best box, the later takes it, as in torchvision); every other default box
    is matched to the object of highest IoU if that reaches ``positive_iou``.

    Args:
        positive_iou: at least this makes a positive, in [0, 1].
        crowd_ioa: a negative with at least this share of its area in a crowd region is ignored.
    """

    positive_iou: float = 0.5
    crowd_ioa: float = 0.5

    def __call__(self, boxes: Tensor, targets: Instances) -> tuple[Tensor, Tensor]:
        """Match boxes ``[A, 4]`` to the objects of one image; returns what `Matcher` does."""
        matcher = Matcher(self.positive_iou, self.positive_iou, crowd_ioa=self.crowd_ioa)
        kind, matched = matcher(boxes, targets)
        objects = (~targets.crowd.to(boxes.device)).nonzero()[:, 0]
        parts = iou_by_parts(targets.boxes.to(boxes)[objects], boxes)
        best, index = map(torch.cat, zip(*(iou.max(dim=1) for iou in parts), strict=True))
        objects, index = objects[best > 0], index[best > 0]
        # A maximum, since which of several values for one place stays is not defined otherwise.
        latest = torch.full_like(matched, -1).scatter_reduce(0, index, objects, "amax")
        kind[index] = POSITIVE
        return kind, torch.where(latest >= 0, latest, matched)
