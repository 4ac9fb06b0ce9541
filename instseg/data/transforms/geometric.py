"""Transforms of one image that move pixels: mirroring, jitter of the scale, crops."""

from __future__ import annotations

import math

from torchvision import tv_tensors

from instseg.data.transforms.moves import (
    Pair,
    PairTransform,
    check_probability,
    check_scales,
    checked_size,
    draw_float,
    draw_int,
    happens,
    hflip,
    random_window,
    resize,
    round_half_up,
    scaled,
    visible_enough,
    window,
)
from instseg.data.transforms.resize import Resizing
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances


class RandomHorizontalFlip(PairTransform):
    """Mirror left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("p", p)
        self.p = p

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Mirror the pair, or leave it."""
        return hflip(image, target) if happens(self.p) else (image, target)


class LargeScaleJitter(Resizing):
    """Resize by a random factor, then crop at random or pad to ``size``.

    Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
    Segmentation" (CVPR 2021), section 3. The factor is relative to the largest size at which the
    whole image fits in ``size``; padding is at the right and bottom.

    Args:
        size: (height, width) of every result.
        min_scale: least factor, > 0.
        max_scale: greatest factor.
        fill: value of the padding, 0 to 255; the paper's is gray. Images of 16 bits get the same
            share of their range.
    """

    def __init__(
        self, size: Size, min_scale: float = 0.1, max_scale: float = 2.0, fill: int = 128
    ) -> None:
        super().__init__()
        self.size = checked_size(size)
        self.min_scale, self.max_scale, self.fill = min_scale, max_scale, fill
        check_scales(min_scale, max_scale)

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Resize the pair and cut or pad it to `size`."""
        factor = draw_float(self.min_scale, self.max_scale)
        image, target = resize(image, target, self._size(target.image_size, factor))
        return random_window(image, target, self.size, self.fill)

    def largest_size(self, size: Size) -> Size:
        """See `Resizing`: before the crop or padding."""
        return self._size(size, self.max_scale)

    def _size(self, size: Size, factor: float) -> Size:
        fit = min(self.size[0] / size[0], self.size[1] / size[1])
        return scaled(size, fit * factor)


class RandomCrop(PairTransform):
    """Crop a random window that holds as much as it can of at least one object.

    Each side of the window is a random part of the image's. Where there are objects, one of them
    is drawn: the window grows to at least ``min_visibility`` of that object's box and is placed so
    that it covers the whole box, or lies inside it where the box is larger. Images without objects
    are cropped anywhere. Objects of which less than ``min_visibility`` of the box is left are
    removed; crowd regions stay as long as any of them is in the window, since what they cover must
    still be ignored.

    Args:
        min_scale: least part of the image's height and width that the window's have, in (0, 1].
        max_scale: greatest part.
        min_visibility: share of a box's area that must be left, in [0, 1].
    """

    def __init__(
        self, min_scale: float = 0.5, max_scale: float = 1.0, min_visibility: float = 0.25
    ) -> None:
        super().__init__()
        self.min_scale, self.max_scale = min_scale, max_scale
        self.min_visibility = min_visibility
        check_scales(min_scale, max_scale, limit=1)
        check_probability("min_visibility", min_visibility)

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Crop the pair and remove the objects that are mostly cut away."""
        height, width = target.image_size
        objects = (~target.crowd).nonzero()[:, 0].tolist()
        if objects:
            chosen = objects[draw_int(0, len(objects) - 1)]
            x1, y1, x2, y2 = target.boxes[chosen].tolist()
            top, new_height = self._interval(height, y1, y2)
            left, new_width = self._interval(width, x1, x2)
        else:
            top, new_height = self._interval(height, 0, height)
            left, new_width = self._interval(width, 0, width)
        cropped_image, cropped = window(image, target, left, top, (new_height, new_width))
        keep = visible_enough(target, cropped, self.min_visibility)
        if objects:
            keep[chosen] = True  # rounding to whole pixels may have cost it a hair too much
        return cropped_image, cropped[keep]

    def _interval(self, length: int, start: float, end: float) -> tuple[int, int]:
        """(offset, length) along one axis that covers [start, end], or lies inside it."""
        drawn = length * draw_float(self.min_scale, self.max_scale)
        needed = (end - start) * math.sqrt(self.min_visibility)
        side = min(length, max(1, round_half_up(drawn), math.ceil(needed)))
        low, high = sorted((start, end - side))
        low, high = max(0, math.ceil(low)), min(length - side, math.floor(high))
        # No whole number between them: the nearest one.
        return (draw_int(low, high) if low <= high else min(low, length - side)), side
