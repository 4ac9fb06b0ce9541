"""Axis-aligned affine maps: all that resizing, flipping, cropping and padding do to coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""

MAX_PIXELS = 2**27
"""The largest picture that is taken into memory, 134 million pixels; larger ones come in tiles."""


@dataclass(frozen=True)
class AxisTransform:
    """The map ``x' = scale_x * x + shift_x``, ``y' = scale_y * y + shift_y``.

    Coordinates are continuous: pixel (row i, column j) covers [j, j+1) x [i, i+1). A negative
    scale mirrors that axis.
    """

    scale_x: float = 1.0
    shift_x: float = 0.0
    scale_y: float = 1.0
    shift_y: float = 0.0

    def __post_init__(self) -> None:
        if self.scale_x == 0 or self.scale_y == 0:
            raise ValueError(f"a transform with scale 0 has no inverse: {self}")

    @classmethod
    def resize(cls, old: Size, new: Size) -> AxisTransform:
        """The map from an image of size ``old`` (height, width) to one of size ``new``."""
        return cls(scale_x=new[1] / old[1], scale_y=new[0] / old[0])

    @classmethod
    def hflip(cls, width: float) -> AxisTransform:
        """Mirror left and right in an image ``width`` pixels wide."""
        return cls(scale_x=-1.0, shift_x=float(width))

    @classmethod
    def crop(cls, left: float, top: float) -> AxisTransform:
        """Make (``left``, ``top``) the new origin; negative values pad."""
        return cls(shift_x=-float(left), shift_y=-float(top))

    def then(self, after: AxisTransform) -> AxisTransform:
        """This map followed by ``after``."""
        return AxisTransform(
            scale_x=after.scale_x * self.scale_x,
            shift_x=after.scale_x * self.shift_x + after.shift_x,
            scale_y=after.scale_y * self.scale_y,
            shift_y=after.scale_y * self.shift_y + after.shift_y,
        )

    def inverse(self) -> AxisTransform:
        """The map that undoes this one."""
        return AxisTransform(
            scale_x=1.0 / self.scale_x,
            shift_x=-self.shift_x / self.scale_x,
            scale_y=1.0 / self.scale_y,
            shift_y=-self.shift_y / self.scale_y,
        )

    def apply_boxes(self, boxes: Tensor) -> Tensor:
        """Map boxes ``[N, 4]`` (x1, y1, x2, y2); mirrored axes keep x1 <= x2 and y1 <= y2."""
        scale = boxes.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        shift = boxes.new_tensor([self.shift_x, self.shift_y, self.shift_x, self.shift_y])
        x1, y1, x2, y2 = (boxes * scale + shift).unbind(-1)
        if self.scale_x < 0:
            x1, x2 = x2, x1
        if self.scale_y < 0:
            y1, y2 = y2, y1
        return torch.stack([x1, y1, x2, y2], dim=-1)
