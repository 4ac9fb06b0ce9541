"""Changes of colour."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from instseg.data.transforms.moves import Pair, PairTransform, draw_float, happens, kind
from instseg.structures.instances import Instances


class PhotometricDistort(v2.RandomPhotometricDistort):
    """SSD's changes of brightness, contrast, saturation, hue and channel order, by torchvision.

    Images of one channel have no saturation and hue to change.

    Raises:
        ValueError: (when called) an image has neither one nor three channels.
    """

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Called by ``v2.Transform`` with the image and its target."""
        for part in flat_inputs:
            if isinstance(part, tv_tensors.Image) and part.shape[0] not in (1, 3):
                raise ValueError(
                    f"PhotometricDistort takes images of 1 or 3 channels, got {kind(part)}; "
                    "IntensityJitter takes all"
                )


class HsvJitter(PairTransform):
    """Shift hue, saturation and value of the whole image by random amounts.

    YOLOX's form of the jitter of the Darknet family: each of the three is shifted in half of the
    samples, by a whole number up to the given one in either direction. Hue goes round; the others
    are clipped. Amounts are in OpenCV's units for 8-bit images: 180 is the whole circle of hues,
    255 full saturation and value.

    Args:
        hue: 0 to 90.
        saturation: 0 to 255.
        value: 0 to 255.

    Raises:
        ValueError: an argument is out of range; or (when called) the image is not ``uint8 [3, H,
            W]``.
    """

    def __init__(self, hue: int = 5, saturation: int = 30, value: int = 30) -> None:
        super().__init__()
        for name, given, limit in (
            ("hue", hue, 90),
            ("saturation", saturation, 255),
            ("value", value, 255),
        ):
            if not 0 <= given <= limit:
                raise ValueError(f"{name} must be in 0..{limit}, got {given}")
        self.amounts = (hue, saturation, value)

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Shift the colours; the objects stay."""
        if image.dtype != torch.uint8 or image.shape[0] != 3:
            raise ValueError(
                f"HsvJitter takes RGB images of 8 bits, uint8 [3, H, W], got {kind(image)}; "
                "IntensityJitter takes all"
            )
        shift = [int(happens(0.5) * draw_float(-amount, amount)) for amount in self.amounts]
        if not any(shift):
            return image, target
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(np.int16) + np.array(shift, np.int16)
        hsv[..., 0] %= 180
        hsv[..., 1:] = hsv[..., 1:].clip(0, 255)
        moved = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        return tv_tensors.Image(torch.from_numpy(moved).permute(2, 0, 1)), target
