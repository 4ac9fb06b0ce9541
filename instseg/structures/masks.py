"""Masks of the instances of one image, in the three forms they take on their way.

Ground truth stays `SparseMasks` (polygons or RLE, with a coordinate map) from the annotation file
to the loss; a caller that already has pixels passes `BitMasks`; predictions are `RoIMasks`, small
probability maps that belong to boxes. Turning one into another is the work of `instseg.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.structures.geometry import AxisTransform, Size

Polygon = npt.NDArray[np.float64]
"""Vertices ``[K, 2]`` as (x, y), K >= 3."""

RLE = dict[str, Any]
"""COCO's compressed run lengths: ``{"size": [height, width], "counts": bytes}``."""

Segmentation = list[Polygon] | RLE
"""One instance: the union of its polygons, or a run-length code."""


@dataclass(eq=False)
class SparseMasks:
    """Polygons or RLE of N instances, and the map from their image to the present one.

    Geometric transforms only compose the map: no vertex or pixel is touched until a consumer asks
    for targets or pixels, and nothing of size N x H x W exists.

    Args:
        segmentations: one `Segmentation` for each instance, in coordinates of the source image.
        source_size: (height, width) of the image that the segmentations were drawn on.
        size: (height, width) of the present image.
        transform: from source coordinates to present ones.
    """

    segmentations: list[Segmentation]
    source_size: Size
    size: Size
    transform: AxisTransform = field(default_factory=AxisTransform)

    def __len__(self) -> int:
        return len(self.segmentations)

    def select(self, indices: Sequence[int]) -> SparseMasks:
        """The masks at ``indices``, in that order."""
        return replace(self, segmentations=[self.segmentations[i] for i in indices])

    def transformed(self, transform: AxisTransform, size: Size) -> SparseMasks:
        """The masks after ``transform`` took the present image to one of ``size``."""
        return replace(self, transform=self.transform.then(transform), size=size)

    def to(self, device: torch.device | str) -> SparseMasks:
        """Itself: segmentations live on the CPU whatever the images do."""
        return self


@dataclass(eq=False)
class BitMasks:
    """Masks as pixels: ``bool`` or ``uint8`` ``[N, H, W]`` of values 0 and 1."""

    tensor: Tensor

    def __post_init__(self) -> None:
        if self.tensor.ndim != 3 or self.tensor.dtype not in (torch.bool, torch.uint8):
            raise ValueError(
                "BitMasks needs a bool or uint8 tensor [N, H, W], "
                f"got {self.tensor.dtype} {list(self.tensor.shape)}"
            )

    def __len__(self) -> int:
        return self.tensor.shape[0]

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.tensor.shape[1], self.tensor.shape[2]

    def select(self, indices: Sequence[int]) -> BitMasks:
        """The masks at ``indices``, in that order."""
        return BitMasks(self.tensor[list(indices)])

    def to(self, device: torch.device | str) -> BitMasks:
        """The masks on ``device``."""
        return BitMasks(self.tensor.to(device))


@dataclass(eq=False)
class RoIMasks:
    """Predicted masks: a probability map for each box, spread over that box when pasted.

    Args:
        probs: ``float [N, M, M]`` in [0, 1].
        aligned: the pixel convention the head was trained with. True is the continuous one of
            detectron2 (``aligned=True``); False is that of torchvision's checkpoints, which paste
            into boxes rounded to whole pixels.
    """

    probs: Tensor
    aligned: bool = True

    def __post_init__(self) -> None:
        if self.probs.ndim != 3 or not self.probs.is_floating_point():
            raise ValueError(
                "RoIMasks needs a floating tensor [N, M, M], "
                f"got {self.probs.dtype} {list(self.probs.shape)}"
            )

    def __len__(self) -> int:
        return self.probs.shape[0]

    def select(self, indices: Sequence[int]) -> RoIMasks:
        """The masks at ``indices``, in that order."""
        return RoIMasks(self.probs[list(indices)], self.aligned)

    def to(self, device: torch.device | str) -> RoIMasks:
        """The masks on ``device``."""
        return RoIMasks(self.probs.to(device), self.aligned)


Masks = SparseMasks | BitMasks | RoIMasks
