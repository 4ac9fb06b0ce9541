"""A picture that belongs to an image: what image-to-image models learn from and return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.structures.geometry import Size

_MAXIMUM = {torch.uint8: 255, torch.uint16: 65535}


@dataclass(eq=False)
class ImageTarget:
    """The picture to make of an image: ground truth, or a model's prediction.

    Args:
        image: ``[C, H, W]``: uint8, uint16, or floating in [0, 1].

    Raises:
        ValueError: another shape or dtype.
    """

    image: Tensor

    def __post_init__(self) -> None:
        image = self.image
        if image.dtype not in _MAXIMUM and not image.is_floating_point():
            raise ValueError(f"image must be uint8, uint16 or floating, got {image.dtype}")
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(f"image must be [C, H, W], got {list(image.shape)}")

    @property
    def image_size(self) -> Size:
        """(height, width) of the picture, and of the image that it belongs to."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def unit(self) -> Tensor:
        """The picture as ``float [C, H, W]`` in [0, 1]."""
        if self.image.is_floating_point():
            return self.image
        return self.image.float() / _MAXIMUM[self.image.dtype]

    def to(self, device: torch.device | str) -> ImageTarget:
        """The picture on ``device``."""
        return ImageTarget(self.image.to(device))

    def resized(self, size: Size) -> ImageTarget:
        """The picture resized to ``size`` (height, width), bilinear with antialiasing."""
        if size == self.image_size:
            return self
        values = self.image if self.image.is_floating_point() else self.image.float()
        resized = F.interpolate(
            values[None], size, mode="bilinear", align_corners=False, antialias=True
        )[0]
        if not self.image.is_floating_point():
            resized = resized.round()
        return ImageTarget(resized.to(self.image.dtype))
