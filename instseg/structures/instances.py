"""The instances of one image: what data sets give, models return and evaluators read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instseg.structures.geometry import AxisTransform, Size
from instseg.structures.masks import BitMasks, Masks, RoIMasks, SparseMasks


@dataclass(eq=False)
class Instances:
    """N objects in one image: ground truth, or a model's detections.

    Args:
        image_size: (height, width) of the image the coordinates refer to.
        boxes: ``float32 [N, 4]``, absolute x1 y1 x2 y2 in continuous coordinates.
        labels: ``int64 [N]``, contiguous class indices from 0; no background class.
        scores: ``float [N]`` in [0, 1] for detections, None for ground truth.
        masks: N masks, or None where the task has none.
        is_crowd: ``bool [N]``, COCO's ``iscrowd``: regions to ignore. None means none is.

    Raises:
        ValueError: a field's shape or dtype contradicts the above; the message names the field.
    """

    image_size: Size
    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Masks | None = None
    is_crowd: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.boxes.shape[0] if self.boxes.ndim else 0
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or not self.boxes.is_floating_point():
            raise ValueError(
                f"boxes must be floating [N, 4], got {self.boxes.dtype} {list(self.boxes.shape)}"
            )
        if self.labels.shape != (n,) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 [{n}], got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if self.scores is not None and self.scores.shape != (n,):
            raise ValueError(f"scores must be [{n}], got {list(self.scores.shape)}")
        if self.masks is not None and len(self.masks) != n:
            raise ValueError(f"{n} boxes but {len(self.masks)} masks")
        if self.is_crowd is not None and (
            self.is_crowd.shape != (n,) or self.is_crowd.dtype != torch.bool
        ):
            raise ValueError(
                f"is_crowd must be bool [{n}], "
                f"got {self.is_crowd.dtype} {list(self.is_crowd.shape)}"
            )

    @classmethod
    def empty(cls, image_size: Size, *, with_masks: bool = False) -> Instances:
        """No objects in an image of ``image_size``."""
        return cls(
            image_size=image_size,
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            masks=SparseMasks([], image_size, image_size) if with_masks else None,
            is_crowd=torch.zeros(0, dtype=torch.bool),
        )

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, index: Tensor | slice | list[int]) -> Instances:
        """Select by a bool mask ``[N]``, an integer tensor, a list of integers or a slice."""
        keep = torch.arange(len(self), device=self.boxes.device)[index]
        masks = None if self.masks is None else self.masks.select(keep.tolist())
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            scores=None if self.scores is None else self.scores[keep],
            masks=masks,
            is_crowd=None if self.is_crowd is None else self.is_crowd[keep],
        )

    def to(self, device: torch.device | str) -> Instances:
        """The instances with every tensor on ``device``."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            scores=None if self.scores is None else self.scores.to(device),
            masks=None if self.masks is None else self.masks.to(device),
            is_crowd=None if self.is_crowd is None else self.is_crowd.to(device),
        )

    @property
    def crowd(self) -> Tensor:
        """``bool [N]``: `is_crowd`, with None read as all False."""
        if self.is_crowd is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.boxes.device)
        return self.is_crowd

    def transformed(self, transform: AxisTransform, size: Size) -> Instances:
        """Follow the image through ``transform`` to ``size``; boxes are clipped to it.

        Raises:
            TypeError: the masks are `BitMasks`, whose pixels do not follow a coordinate map.
        """
        masks = self.masks
        if isinstance(masks, BitMasks):
            raise TypeError("BitMasks cannot be moved by a coordinate map; use SparseMasks")
        if isinstance(masks, SparseMasks):
            masks = masks.transformed(transform, size)
        elif isinstance(masks, RoIMasks) and (transform.scale_x < 0 or transform.scale_y < 0):
            axes = [a for a, s in ((1, transform.scale_y), (2, transform.scale_x)) if s < 0]
            masks = RoIMasks(masks.probs.flip(axes), masks.aligned)
        boxes = transform.apply_boxes(self.boxes)
        limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
        boxes = boxes.clamp(min=0).minimum(limit)
        return replace(self, image_size=size, boxes=boxes, masks=masks)

    def resized(self, size: Size) -> Instances:
        """The same objects on the image resized to ``size`` (height, width)."""
        return self.transformed(AxisTransform.resize(self.image_size, size), size)
