"""From a list of images to a normalised, padded batch on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instseg.structures import ImageBatch
from instseg.structures.geometry import Size

_MAXIMUM = {torch.uint8: 255.0, torch.uint16: 65535.0}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(nn.Module):
    """Scale images to 0..1, subtract the mean, divide by the deviation, pad to one size.

    Args:
        mean: one value a channel, on the 0..1 scale.
        std: likewise.
        size_divisor: padded sides are multiples of this (the largest stride of the backbone).
        min_size: (height, width) that a padded batch has at least.
        fill: one value a channel on the 0..1 scale, the colour of the padding; None for ``mean``.
    """

    mean: Tensor
    std: Tensor
    border: Tensor | None

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size_divisor: int = 32,
        *,
        min_size: Size = (1, 1),
        fill: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.size_divisor = size_divisor
        self.min_size = min_size
        self.fill = fill
        border = (
            None if fill is None else (torch.tensor(fill) - self.mean[:, 0, 0]) / self.std[:, 0, 0]
        )
        self.register_buffer("border", border, persistent=False)

    def forward(self, images: Sequence[Tensor]) -> ImageBatch:
        """Images ``[C, H, W]`` of any sizes: uint8, uint16, or floating in 0..1.

        Raises:
            ValueError: no images, another number of channels or dimensions, or another dtype.
        """
        if not images:
            raise ValueError("a model needs at least one image")
        return ImageBatch.from_images(
            [self._normalise(image) for image in images],
            self.size_divisor,
            min_size=self.min_size,
            fill=self.border,
        )

    def _normalise(self, image: Tensor) -> Tensor:
        channels = self.mean.shape[0]
        if image.ndim != 3 or image.shape[0] != channels or 0 in image.shape:
            raise ValueError(f"images must be [{channels}, H, W], got {list(image.shape)}")
        image = image.to(self.mean.device, non_blocking=True)
        if image.dtype in _MAXIMUM:
            image = image.float() / _MAXIMUM[image.dtype]
        elif not image.is_floating_point():
            raise ValueError(f"images must be uint8, uint16 or floating, got {image.dtype}")
        return (image.float() - self.mean) / self.std
