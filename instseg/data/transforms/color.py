"""Changes of colour that torchvision has not."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torchvision import tv_tensors

from instseg.data.transforms.moves import Pair, PairTransform, draw_float, happens
from instseg.structures.instances import Instances


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
        shift = [int(happens(0.5) * draw_float(-amount, amount)) for amount in self.amounts]
        if not any(shift):
            return image, target
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(np.int16) + np.array(shift, np.int16)
        hsv[..., 0] %= 180
        hsv[..., 1:] = hsv[..., 1:].clip(0, 255)
        moved = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        return tv_tensors.Image(torch.from_numpy(moved).permute(2, 0, 1)), target
